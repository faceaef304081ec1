"""The models and pictures to measure with: made here, offline, the same on every machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.case import Case
from testkit.photographs import PHOTOS, encoded
from testkit.servers import OFFLINE, ROOT
from vision.tasks import TASKS

STARTER = ROOT / "train_and_save" / "starter"


def starters(home: Path, tasks: Sequence[str]) -> list[Case]:
    """Save the starters into a model store, all three: our service holds one for each task."""
    tags = _save(home, "starter")
    cases = []
    for task in tasks:
        saved = _folder(home, tags[task])
        # The captioner's encoder lies beside the classifier; only the store has it whole.
        original = saved if task == "captioning" else STARTER / task
        cases.append(Case(name=f"starter {task}", task=task, original=original, saved=saved, tag=tags[task]))
    return cases


def production(home: Path, checkpoints: Path, tasks: Sequence[str]) -> list[Case]:
    """Make checkpoints as large as those that people serve, with seeded weights, and save them into a model store."""
    from testkit import hub

    makers: list[tuple[str, str, Callable[[Path], None], dict[str, int]]] = [
        ("vit-base", "classification", partial(hub.vit, full=True), {}),
        (
            "vit-tiny",
            "classification",
            partial(hub.vit, full=True, hidden_size=192, num_attention_heads=3, intermediate_size=768),
            {},
        ),
        ("blip-base", "captioning", partial(hub.blip, full=True), {"max_new_tokens": 20}),
        ("yolo26n", "detection", partial(hub.yolo, architecture="yolo26n"), {}),
    ]
    cases = []
    for name, task, make, options in makers:
        if task not in tasks:
            continue
        make(checkpoints / name)
        original = next((checkpoints / name).glob("*.pt"), checkpoints / name)
        tag = _save(home, "path", str(original), "--name", name)[task]
        cases.append(Case(name=name, task=task, original=original, saved=_folder(home, tag), tag=tag, options=options))
    return cases


def pictures() -> dict[str, bytes]:
    """A photograph as large as ImageNet's, and the same as a phone's 12 megapixels, with a sensor's noise."""
    photo = Image.open(PHOTOS["bus"]).convert("RGB")
    large = np.asarray(photo.resize((3000, 4000), Image.Resampling.BICUBIC)).astype(np.int16)
    large += np.random.default_rng(0).normal(0, 5, large.shape).round().astype(np.int16)
    return {
        "small": encoded(photo.resize((375, 500)), "JPEG", quality=95),
        "large": encoded(Image.fromarray(large.clip(0, 255).astype(np.uint8)), "JPEG", quality=92),
    }


def _save(home: Path, *arguments: str) -> dict[str, str]:
    """Run train_and_save; return the tag of each task that it saved."""
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    command = [sys.executable, "-m", "train_and_save", *arguments]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    settings = dict(line.split("=", 1) for line in run.stdout.splitlines() if line.startswith("VISION_"))
    return {task: settings[setting(task)] for task in TASKS if setting(task) in settings}


def setting(task: str) -> str:
    """The variable that says which saved model serves a task."""
    return f"VISION_{task.upper()}_MODEL"


def _folder(home: Path, tag: str) -> Path:
    name, _, version = tag.partition(":")
    return home / "models" / name / version
