"""`make test-checkpoints`: what real releases of Ultralytics wrote is saved, and answers as there. Takes minutes.

Each release is installed from PyPI into an environment of its own; none of what it writes is kept.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics.engine.results import Results
from ultralytics.models.yolo.model import YOLO

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT
from vision.bento import store
from vision.core.device import CPU
from vision.core.schemas import Item
from vision.tasks import TASKS
from vision.tasks.detection.detector import Detector
from vision.tasks.detection.spec import DetectOptions

RELEASES = {
    "8.0.100": ["yolov8n"],
    "8.0.200": ["yolov5n", "yolov8n"],
    "8.2.0": ["yolov5n", "yolov8n"],
    "8.2.45": ["yolov9t", "yolov10n"],  # the last but three whose loss is pickled along
    "8.3.0": ["yolo11n"],
    version("ultralytics"): ["yolo12n", "yolo26n"],
}
UV = str(Path(sys.executable).with_name("uv"))


def environment(release: str, folder: Path) -> Path:
    """The Python of an environment with a release, and with the torch that is here."""
    if release == version("ultralytics"):
        return Path(sys.executable)
    python = folder / "bin" / "python"
    wanted = [f"ultralytics=={release}", f"torch=={version('torch')}", f"torchvision=={version('torchvision')}"]
    wanted += ["numpy<2", "setuptools<80", "opencv-python-headless"]
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    overrides = ["--override", str(ROOT / "overrides.txt")]
    subprocess.run([UV, "pip", "install", "--quiet", "--python", str(python), *overrides, *wanted], check=True)
    return python


@pytest.fixture(scope="module", params=[(release, name) for release, names in RELEASES.items() for name in names])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which a release has left `<name>-best.pt` and `-last.pt`, and that name."""
    (release, name), out = request.param, tmp_path_factory.mktemp("release")
    subprocess.run(
        [environment(release, out / "environment"), ROOT / "tests" / "checkpoints" / "release.py", name, out],
        cwd=out,
        env={**os.environ, **OFFLINE, "YOLO_CONFIG_DIR": str(out), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        check=True,
        capture_output=True,
    )
    return out, name


@pytest.mark.parametrize("kind", ["best", "last"])
def test_it_answers_as_ultralytics(written: tuple[Path, str], kind: str, tmp_path: Path) -> None:
    folder, name = written
    pt = folder / f"{name}-{kind}.pt"
    run = subprocess.run(
        [sys.executable, "-m", "train_and_save", "path", pt],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "BENTOML_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    [saved] = (tmp_path / "models" / pt.stem).glob("*/")
    assert json.loads((saved / "config.json").read_text())["labels"] == ["square", "disc"]
    photo = Image.open(PHOTOS["bus"]).convert("RGB")
    item = Item(TASKS["detection"].load_shrink(saved)(photo), photo.size, DetectOptions(min_score=0))
    [answer] = Detector(saved, store.verify(saved), CPU).predict([item])
    ours = np.array([[found.score, *found.box] for found in cast(Any, answer).objects[:5]])
    theirs = reference(pt, photo)[:5]
    assert len(ours) > 0
    # two epochs give scores of some thousandths
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], rtol=1e-2, atol=1e-6)
    np.testing.assert_allclose(ours[:, 1:], theirs[:, 1:], atol=1)


def reference(pt: Path, photo: Image.Image) -> np.ndarray[Any, np.dtype[Any]]:
    """Scores and boxes (N, 5) that Ultralytics finds in a photograph, best first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        [result] = cast(list[Results], YOLO(pt).predict(photo, conf=1e-7, imgsz=64, verbose=False, device="cpu"))
    assert result.boxes is not None
    rows = torch.as_tensor(result.boxes.data).numpy()
    return rows[:, [4, 0, 1, 2, 3]][np.argsort(-rows[:, 4])]
