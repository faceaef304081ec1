"""Models from a folder or a checkpoint that name no class, or hold more than a network: saved, or refused unread."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import v8DetectionLoss

from testkit import hub
from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT
from vision.bento import store
from vision.core.device import CPU
from vision.core.schemas import Card, Item
from vision.tasks import TASKS
from vision.tasks.classification.classifier import Classifier
from vision.tasks.classification.spec import ClassifyOptions

pytestmark = pytest.mark.served

Save = Callable[[Path], tuple[Path | None, str]]


FULL = bool(os.environ.get("FULL"))
"""Saving a model takes most of a minute; `make test-hub` saves one of each kind."""


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a model from a path into an empty store; return its folder there, and the last line that was said."""

    def run(path: Path) -> tuple[Path | None, str]:
        process = subprocess.run(
            [sys.executable, "-m", "train_and_save", "path", path, "--name", "mine"],
            cwd=ROOT,
            env={**os.environ, **OFFLINE, "BENTOML_HOME": str(tmp_path / "bentoml"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in process.stderr
        saved = list((tmp_path / "bentoml" / "models" / "mine").glob("*/"))
        assert len(saved) == (process.returncode == 0), process.stderr
        return next(iter(saved), None), "".join(process.stderr.strip().splitlines()[-1:])

    return run


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A folder's configuration, with these changes written into it; None takes a value away."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text()) | changes
    written = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(written))
    return written


# Configurations without a class


@pytest.mark.parametrize("make", [hub.vit, hub.resnet, hub.rt_detr, hub.blip, hub.vit_gpt2] if FULL else [hub.vit])
def test_a_configuration_without_architectures_is_what_its_type_usually_is(
    save: Save, tmp_path: Path, make: Callable[[Path, bool], None]
) -> None:
    make(tmp_path / "model", False)
    architectures = config_of(tmp_path / "model")["architectures"]
    config_of(tmp_path / "model", architectures=None)
    saved, said = save(tmp_path / "model")
    assert saved is not None, said
    assert [store.read_card(saved).architecture] == architectures
    assert config_of(saved)["architectures"] == architectures


def test_a_type_that_does_no_task_is_told(save: Save, tmp_path: Path) -> None:
    hub.vit(tmp_path / "model", False)
    config_of(tmp_path / "model", architectures=None, model_type="vit_mae")
    saved, said = save(tmp_path / "model")
    assert saved is None
    assert "is of type vit_mae, for none of" in said
    assert "add the class that it was saved from" in said


@pytest.mark.parametrize(
    ("labels", "safe", "newest"),
    [(*one, newest) for one in ((1000, True), (3, True), (3, False)) for newest in (True, False)]
    if FULL
    else [(1000, True, True), (3, False, False)],
)
def test_a_folder_as_timm_writes_it_answers_as_timm(
    save: Save, tmp_path: Path, labels: int, safe: bool, newest: bool
) -> None:
    """By its own writer: safetensors or a pickle; the newest tells `model_args`, of which older ones know nothing."""
    torch.manual_seed(7)
    model = timm.create_model("test_resnet", num_classes=labels).eval()
    names = {"label_names": ["ant", "bee", "cow"]} if labels == 3 else {}
    save_for_hf(model, str(tmp_path / "timms"), model_config=names, safe_serialization=safe)
    config = config_of(tmp_path / "timms", **({} if newest else {"model_args": None}))
    assert not {"architectures", "model_type"} & config.keys()
    saved, said = save(tmp_path / "timms")
    assert saved is not None, said
    card = store.read_card(saved)
    assert card.input_size == (160, 160)
    assert card.labels == labels
    image = Image.open(PHOTOS["cat"]).convert("RGB")
    transform: Any = create_transform(**resolve_data_config(model.pretrained_cfg))
    with torch.inference_mode():
        expected = model(transform(image)[None]).softmax(-1)[0].sort(descending=True)
    told = answer(saved, card, image)
    assert list(told.values()) == pytest.approx(expected.values[:3].tolist(), abs=1e-3)
    if labels == 3:
        assert list(told) == [["ant", "bee", "cow"][index] for index in expected.indices]


def answer(folder: Path, card: Card, image: Image.Image) -> dict[str, float]:
    item = Item(TASKS["classification"].load_shrink(folder)(image), image.size, ClassifyOptions(top_k=3))
    [result] = Classifier(folder, card, CPU).predict([item])
    return {label.label: label.score for label in cast(Any, result).labels}


# Checkpoints of Ultralytics; `make test-checkpoints` has those of real releases


def checkpoint(**architecture: Any) -> dict[str, Any]:
    """What trainers before 8.2.48 pickled: a network with its loss, beside figures of NumPy."""
    model: Any = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, data=Path("data.yaml"))
    model.criterion = v8DetectionLoss(model)
    model.names = {0: "square", 1: "disc"}
    model.yaml |= architecture
    return {"model": None, "ema": model.half(), "train_args": {"imgsz": 64}, "best_fitness": np.float64(0.5)}


def test_a_checkpoint_with_its_loss_is_saved(save: Save, tmp_path: Path) -> None:
    pt = tmp_path / "best.pt"
    torch.save(checkpoint(), pt)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(pt)
    assert {"ultralytics.utils.loss.v8DetectionLoss", "numpy._core.multiarray.scalar"} <= set(names)
    saved, said = save(pt)
    assert saved is not None, said
    assert config_of(saved)["labels"] == ["square", "disc"]


class Constructor:
    """A pickle that calls a class of the list, where a saved network is only filled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return DetectionModel, ("yolov8n.yaml",)


def test_a_checkpoint_gets_no_code_to_run_by_what_is_allowed(save: Save, tmp_path: Path) -> None:
    """Ultralytics evaluates an architecture's activation, and looks its layers' names up among all it has."""
    pt, mark = tmp_path / "evil.pt", tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for content, reason in [
        (checkpoint(activation=code), "which is no layer"),
        (checkpoint(head=[[-1, 1, "torch_safe_load", [str(mark)]]]), "names torch_safe_load, which is no layer"),
        ({"model": Constructor()}, "it calls a constructor"),
        ({"model": torch.nn.modules.module.register_module_forward_hook}, "no class of a network"),
    ]:
        torch.save(content, pt)
        saved, said = save(pt)
        assert saved is None
        assert reason in said
        assert not mark.exists()
    with pytest.raises(TypeError):
        DetectionModel(checkpoint(activation=code)["ema"].yaml, verbose=False)
    assert mark.exists(), "built without care, it would have run"
