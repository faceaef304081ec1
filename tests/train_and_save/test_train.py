"""Training on a dozen pictures that the test makes: each command ends in a model that the service's class serves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT
from train_and_save import datasets
from train_and_save.datasets import DataError
from vision.bento import store
from vision.core.device import CPU
from vision.core.schemas import Item
from vision.tasks.classification.classifier import Classifier, GraphNetwork
from vision.tasks.classification.spec import ClassifyOptions

pytestmark = pytest.mark.served

# A process of its own: libraries warn, and read their settings from the environment when they are imported. One for
# all calls of a test, since to import them takes longest.
SCRIPT = """
import json, sys, torch
from pathlib import Path
from train_and_save.train import own as train
from train_and_save.datasets import DataError
torch.set_num_threads(1)
for call in json.loads(sys.argv[1]):
    try:
        exec(call.pop("before", ""))
        task, data, work = call.pop("task"), Path(call.pop("data")), Path(call.pop("work"))
        print(train.train(task, data, name="mine", seed=0, device="cpu", work=work, **call))
    except DataError as error:
        print(f"refused: {error}")
    except KeyboardInterrupt:
        print("killed")
    print("---", flush=True)
"""
SMALL_YOLO = "from train_and_save.train import detector; detector.SIDE = 64"
KILLED = """
from transformers import Trainer
whole = Trainer._save_checkpoint
def killed(self, *arguments):
    Trainer._save_checkpoint = whole
    self._save_checkpoint(*arguments)
    raise KeyboardInterrupt
Trainer._save_checkpoint = killed
"""


def picture(path: Path, color: Sequence[int], seed: int) -> Path:
    """A disc of a colour on noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 160, (48, 64, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:48, :64]
    x, y = rng.integers(24, 40), rng.integers(18, 30)
    pixels[(rows - y) ** 2 + (columns - x) ** 2 < 200] = color
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


RED, BLUE = (220, 30, 30), (30, 30, 220)


def image_folder(folder: Path, each: int = 8) -> Path:
    for label, color in (("blue", BLUE), ("red", RED)):
        for number in range(each):
            picture(folder / label / f"{number}.png", color, number + 100 * (label == "red"))
    return folder


def yolo_folder(folder: Path) -> Path:
    for number in range(10):
        picture(folder / "images" / f"{number}.png", RED, number)
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.5\n")
    (folder / "names.txt").write_text("disc\n")
    return folder


def captions_folder(folder: Path, each: int = 4) -> Path:
    lines = []
    for word, color in (("blue", BLUE), ("red", RED)):
        for number in range(each):
            picture(folder / "images" / f"{word}{number}.png", color, number)
            lines += [f"{word}{number}.png\ta {word} ball on the ground", f"{word}{number}.png\ta {word} circle"]
    (folder / "captions.tsv").write_text("\n".join([*lines, "missing.png\ta picture that is not here"]) + "\n")
    return folder


def train(home: Path, task: str, data: Path, *calls: dict[str, Any]) -> tuple[list[str], str]:
    """Call train() for each of `calls`, whose defaults are below; return what each printed, and standard error."""
    default = {"task": task, "data": str(data), "work": str(home / "work"), "base": None, "frozen": False, "epochs": 1}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps([{**default, **call} for call in calls])],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split("---\n")[:-1], run.stderr


def saved(home: Path, printed: str) -> Path:
    """The folder of the model that a call has saved."""
    name, version = printed.split()[-1].split(":")
    folder = home / "models" / name / version
    card = store.verify(folder)
    assert card.version == version
    assert "sha256 of all" in card.description
    assert card.metrics["held_out_pictures"] > 0
    assert not list((home / "work").iterdir())
    return folder


def test_a_frozen_backbone_learns_two_colors(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    [refused, printed], _ = train(tmp_path, "classification", data, {"base": "nothing:1"}, {"frozen": True})
    assert refused == "refused: --base nothing:1 is neither a folder nor a model in the store.\n"
    folder = saved(tmp_path, printed)
    card = store.read_card(folder)
    assert card.labels == 2
    assert card.metrics["held_out_balanced_accuracy"] == 1
    assert "blue (8), red (8)" in card.description
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == ["blue", "red"]
    assert config["pretrained_cfg"]["input_size"] == [3, *reversed(card.input_size)]
    shutil.copytree(folder, tmp_path / "eager", ignore=shutil.ignore_patterns("openvino.*"))
    pixels = np.asarray(Image.open(PHOTOS["bus"]).convert("RGB"))
    item = Item(pixels, (pixels.shape[1], pixels.shape[0]), ClassifyOptions())
    graph, eager = (Classifier(place, card, CPU) for place in (folder, tmp_path / "eager"))
    assert isinstance(graph.network, GraphNetwork)
    [answer], [expected] = graph.predict([item]), eager.predict([item])
    scores = {label.label: label.score for label in answer.labels}
    assert scores == pytest.approx({label.label: label.score for label in expected.labels}, abs=1e-3)


def test_a_killed_fine_tuning_goes_on_and_pictures_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", each=10)
    (data / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    calls = {"epochs": 2, "before": KILLED}, {"epochs": 3}, {"epochs": 2}
    [killed, other, again], errors = train(tmp_path, "classification", data, *calls)
    assert killed.endswith("killed\n")
    assert "holds another training, stopped midway" in other
    assert errors.count("goes on from") == 1
    assert "broken.png: The picture's header is broken" in errors
    assert "1 of 21 pictures left out" in errors
    assert "1 left out as unusable" in store.read_card(saved(tmp_path, again)).description
    assert len(list((tmp_path / "models").rglob("model.safetensors"))) == 1


def test_a_captioner_reads_a_table(tmp_path: Path) -> None:
    [printed], _ = train(tmp_path, "captioning", captions_folder(tmp_path / "data"), {"frozen": True})
    card = store.read_card(saved(tmp_path, printed))
    assert "held_out_bleu_4" in card.metrics
    assert card.labels is None


def test_a_detector_is_trained_by_ultralytics(tmp_path: Path) -> None:
    [printed], _ = train(tmp_path, "detection", yolo_folder(tmp_path / "data"), {"before": SMALL_YOLO})
    folder = saved(tmp_path, printed)
    card = store.read_card(folder)
    assert card.labels == 1
    assert card.licence.startswith("AGPL-3.0")
    files = {path.name for path in folder.iterdir() if not path.name.startswith("openvino.")}
    assert files == {"card.json", "config.json", "model.safetensors", "model.yaml"}
    assert not list((tmp_path / "data").rglob("*.cache"))


def test_wrong_folders_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        datasets.read_image_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        datasets.read_image_folder(tmp_path / "empty")
    picture(tmp_path / "flat" / "a.png", RED, 0)
    with pytest.raises(DataError, match="no labels"):
        datasets.read_image_folder(tmp_path / "flat")
    with pytest.raises(DataError, match="one class only"):
        datasets.read_image_folder(picture(tmp_path / "one" / "red" / "a.png", RED, 0).parent.parent)
    picture(tmp_path / "boxes" / "images" / "a.png", RED, 0)
    with pytest.raises(DataError, match="no class names"):
        datasets.read_boxes(tmp_path / "boxes")
    (tmp_path / "boxes" / "names.txt").write_text("disc")
    with pytest.raises(DataError, match="no labels"):
        datasets.read_boxes(tmp_path / "boxes")
    with pytest.raises(DataError, match="no labels"):
        datasets.read_captions_table(tmp_path / "boxes")


def test_more_than_a_tenth_that_cannot_be_used_stops(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, each=5)
    (folder / "red" / "0.png").write_text("no picture")
    assert len(datasets.readable(datasets.read_image_folder(folder))[1]) == 1
    # the same picture under two labels: at least one of the two is wrong
    (folder / "red" / "1.png").write_bytes((folder / "blue" / "1.png").read_bytes())
    with pytest.raises(DataError, match="3 of 10 pictures cannot be used"):
        datasets.readable(datasets.read_image_folder(folder))


def test_yolo_and_coco_tell_the_same_boxes(tmp_path: Path) -> None:
    yolo, labels = datasets.read_boxes(yolo_folder(tmp_path / "yolo"))
    assert labels == ["disc"]
    assert yolo[0].size == (64, 48)
    coco = tmp_path / "coco"
    content: dict[str, list[dict[str, object]]] = {
        "images": [{"id": i, "file_name": box.path.name} for i, box in enumerate(yolo)],
        "categories": [{"id": 7, "name": "disc"}],
        "annotations": [
            {"image_id": i, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, picture in enumerate(yolo)
            for _, (x1, y1, x2, y2) in picture.boxes
        ],
    }
    (tmp_path / "yolo" / "labels" / "0.txt").write_text("0 0.5 0.5 0.4 0.5\n3 0.5 0.5 0.4 0.5\n")
    mislabelled, _ = datasets.read_boxes(tmp_path / "yolo")
    assert "class 3 is not among the 1 names" in mislabelled[0].problem
    coco.mkdir()
    (tmp_path / "yolo" / "images").rename(coco / "images")
    (coco / "annotations.json").write_text(json.dumps(content))
    examples, names = datasets.read_boxes(coco)
    assert names == ["disc"]
    assert [np.allclose(a.boxes[0][1], b.boxes[0][1]) for a, b in zip(examples, yolo, strict=True)] == [True] * 10
