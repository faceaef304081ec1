"""Measuring a saved model: figures that a hand can compute, the page, two versions compared, and bad data."""

import multiprocessing
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE
from train_and_save import starter
from train_and_save.datasets import Boxed, Captioned, DataError, Labelled
from train_and_save.measure import sentences as captioning
from train_and_save.measure.answers import Classified, Detected, Told
from train_and_save.measure.evaluate import compare, evaluate
from vision.bento import store
from vision.core.schemas import Model
from vision.tasks.captioning.spec import Caption
from vision.tasks.classification.spec import Classification, Label
from vision.tasks.detection.spec import DetectedObject, Detection

EVERY = np.arange(2)
MODEL = Model(name="by hand", version="1", source="here")

# what the starters make of these photographs is known from test_pictures.py
FOLDERS = {"espresso": ["coffee"], "tripod": ["camera"], "missile": ["rocket"], "minibus": ["bus"], "moped": ["cat"]}


@pytest.fixture(scope="module")
def worker(home: Path) -> Iterator[ProcessPoolExecutor]:
    """A process of its own, as BentoML reads where its store is when it is imported."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name, value in {**OFFLINE, "BENTOML_HOME": str(home)}.items():
            patch.setenv(name, value)
        pool.submit(int).result()
        yield pool


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A class a folder: four photographs where the starter is right, and a cat that is called a moped."""
    for label, names in FOLDERS.items():
        (tmp_path / "data" / label).mkdir(parents=True)
        for name in names:
            shutil.copy(PHOTOS[name], tmp_path / "data" / label)
    return tmp_path / "data"


def write_boxes(folder: Path, boxes: dict[str, list[tuple[int, tuple[float, float, float, float]]]]) -> Path:
    """Write a YOLO layout: photographs with boxes, x1, y1, x2, y2 in pixels, of person, bus and a made-up label."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "names.txt").write_text("person\nbus\ngrinning\n")
    for name, found in boxes.items():
        shutil.copy(PHOTOS[name], folder / "images")
        with Image.open(PHOTOS[name]) as image:
            width, height = image.size
        lines = [
            f"{kind} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}\n"
            for kind, (x1, y1, x2, y2) in found
        ]
        (folder / "labels" / f"{PHOTOS[name].stem}.txt").write_text("".join(lines))
    return folder


def is_whole(page: str) -> None:
    assert "<script" not in page
    assert not re.findall(r"https?://|//[a-z]|@import|url\(", re.sub(r'src="data:[^"]+"', "", page))
    assert set(re.findall(r"<(?:img|link|iframe|object)\b[^>]*src=\"(\w+:\w+/\w+);base64,", page)) <= {
        "data:image/png",
        "data:image/jpeg",
    }


def classified(*answers: tuple[str, dict[str, float]]) -> Classified:
    return Classified(
        [Labelled(Path("none"), label) for label, _ in answers],
        [
            Classification(labels=[Label(label=name, score=score) for name, score in scores.items()], model=MODEL)
            for _, scores in answers
        ],
    )


def test_classification_by_hand() -> None:
    answers = classified(
        ("cat", {"cat": 0.9, "dog": 0.1}),
        ("cat", {"fox": 0.6, "cat": 0.3}),
        ("cat", {"cat": 0.8, "fox": 0.1}),
        ("dog", {"cat": 0.7, "fox": 0.2}),
    )
    assert answers.metrics(np.arange(4)) == pytest.approx({
        "accuracy": 2 / 4,
        "top_5_accuracy": 3 / 4,
        "balanced_accuracy": (2 / 3 + 0) / 2,
        "macro_f1": (2 * 2 / (3 + 3) + 0) / 2,
        "ece": (0.1 + 0.6 + 0.2 + 0.7) / 4,  # four bins with an answer each
    })  # fmt: skip
    assert answers.losses() == pytest.approx([0, 0.6, 0, 0.7])
    # two right pictures of one label: nothing else counts
    assert answers.metrics(np.array([0, 0, 2, 2]))["balanced_accuracy"] == 1


def test_average_precision_by_hand() -> None:
    def thing(label: str, score: float, box: tuple[float, float, float, float]) -> DetectedObject:
        return DetectedObject(label=label, score=score, box=box, box_normalized=(0, 0, 1, 1))

    truth = [
        Boxed(Path("none"), (100, 100), [("dog", (0, 0, 10, 10)), ("dog", (50, 50, 90, 90))]),
        Boxed(Path("none"), (100, 100), [("cat", (20, 20, 40, 40)), ("unicorn", (0, 0, 50, 50))]),
    ]
    found = [
        # one box to the pixel, one of IoU 0.8, a false one between them
        [thing("dog", 0.9, (0, 0, 10, 10)), thing("dog", 0.8, (0, 60, 9, 69)), thing("dog", 0.7, (50, 50, 90, 82))],
        [thing("cat", 0.1, (20, 20, 40, 40)), thing("unicorn", 0.9, (0, 0, 50, 50))],
    ]
    answers = Detected(truth, [Detection(objects=objects, model=MODEL) for objects in found], ["cat", "dog"])
    # dog at IoU up to 0.80: precision 1 at 51 of COCO's 101 recall steps, 2/3 at the others; above: 1 at 51 of them
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    figures = answers.metrics(EVERY)
    assert figures["ap50"] == pytest.approx((1 + low) / 2)
    assert figures["ap75"] == pytest.approx((1 + low) / 2)
    assert figures["ap"] == pytest.approx((1 + (7 * low + 3 * high) / 10) / 2)
    assert figures["ar100"] == pytest.approx((1 + (7 * 1 + 3 * 0.5) / 10) / 2)
    assert figures["ece"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.9) / 4)
    # at the service's own 0.25 the cat is missed, and one dog is false
    assert answers.losses().tolist() == [1, 1]
    assert answers.metrics(np.array([1, 1]))["ap"] == pytest.approx(1)


def test_sentences_by_hand() -> None:
    truth = [
        Captioned(Path("none"), ["A dog runs on the green grass .", "A brown dog is running ."]),
        Captioned(Path("none"), ["Two men climb a steep rock .", "Climbers on a rock ."]),
        Captioned(Path("none"), ["A child plays in the water .", "Water and a child ."]),
    ]
    said = ["a dog runs on the green grass", "a dog runs", "a child plays in the sand"]
    answers = Told(truth, [Caption(caption=line, score=0.5, model=MODEL) for line in said])
    figures = answers.metrics(np.arange(3))
    known = captioning.quality(said, [example.captions for example in truth])
    assert figures["bleu_1"] == pytest.approx(known["bleu_1"], abs=1e-3)
    assert figures["bleu_4"] == pytest.approx(known["bleu_4"], abs=1e-3)
    # BLEU-1: 7 of 7, 1 of 3 and 5 of 6 words; 16 words said, where 7 + 4 + 6 are nearest
    assert figures["bleu_1"] == pytest.approx(100 * 13 / 16 * np.exp(1 - 17 / 16))
    # the first is one of its two references, which gives 10/2 and more from the other
    assert 5 < answers.cider[0] < 10
    assert answers.losses().argmax() == 1


def test_a_classifier_and_its_page(worker: ProcessPoolExecutor, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    (folders / "tripod" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    for number in range(6):  # so that the broken one is less than a tenth
        shutil.copy(PHOTOS["coffee"], folders / "espresso" / f"{number}.png")
    figures = worker.submit(evaluate, "efficientnet-lite0", folders, out, device="cpu").result()
    assert figures["pictures"] == 11
    assert figures["accuracy"] == pytest.approx(10 / 11)
    assert figures["top_5_accuracy"] == pytest.approx(10 / 11)
    assert figures["balanced_accuracy"] == pytest.approx(4 / 5)
    assert figures["parameters"] == pytest.approx(4.7e6, rel=0.01)
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"]
    assert figures["images_per_second"] > 0
    page = out.read_text("utf-8")
    is_whole(page)
    for part in ("Metrics", "Size and speed", "Calibration", "Worst mistakes", "Confusion matrix"):
        assert f"<h2>{part}</h2>" in page
    assert page.count("data:image/png") == 2
    assert page.count("data:image/jpeg") == 1
    assert "is moped (not among the 5 best)" in page
    assert "broken.jpg" in page


def test_a_detector_beside_itself(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    bus, left, middle = (16.0, 229.0, 804.0, 743.0), (49.0, 399.0, 244.0, 904.0), (222.0, 405.0, 345.0, 861.0)
    data = write_boxes(tmp_path / "data", {"bus": [(1, bus), (0, left), (0, middle), (2, middle)], "coffee": []})
    out = tmp_path / "report.html"
    figures = worker.submit(evaluate, "nanodet-g", data, out, device="cpu").result()
    assert figures["pictures"] == 2
    assert figures["ap50"] > 0.9
    page = out.read_text("utf-8")
    is_whole(page)
    assert "grinning" in page
    assert "<td>bus</td><td>1</td>" in page
    out = tmp_path / "compare.html"
    difference = worker.submit(compare, "nanodet-g", "nanodet-g", data, out, device="cpu", limit=2).result()
    assert difference == dict.fromkeys(["ap", "ap50", "ap75", "ar100", "ece"], 0)
    page = out.read_text("utf-8")
    assert page.count("+0.000 to +0.000") == 5
    assert "<h2>Where they differ most</h2>" in page
    is_whole(page)


def test_a_captioner_and_its_page(worker: ProcessPoolExecutor, tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("cat", "bus", "coffee"):
        shutil.copy(PHOTOS[name], tmp_path / "data" / "images")
    table = [("chelsea.png", "A cat ."), ("bus.jpg", "A blue bus ."), ("coffee.png", "A cup of <coffee> .")]
    (tmp_path / "data" / "captions.tsv").write_text("".join(f"{name}\t{line}\n" for name, line in table))
    out = tmp_path / "report.html"
    figures = worker.submit(evaluate, "flickr8k-captioner", tmp_path / "data", out, device="cpu", limit=2).result()
    assert figures["pictures"] == 2
    assert figures.keys() >= {"bleu_1", "bleu_4", "cider_d"}
    page = out.read_text("utf-8")
    is_whole(page)
    assert "<h2>Variety</h2>" in page
    assert "2 of the 3 pictures" in page
    assert "<coffee>" not in page


def test_bad_data_is_told_in_one_line(worker: ProcessPoolExecutor, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    boxes = write_boxes(tmp_path / "boxes", {"bus": [(2, (16.0, 229.0, 804.0, 743.0))]})
    empty = tmp_path / "empty"
    empty.mkdir()
    (folders / "espresso").rename(folders / "my coffee")
    for tag, data, line in [
        ("efficientnet-lite0", folders, r"labels unknown to efficientnet-lite0: 'my coffee'\. Known are 'tench"),
        ("efficientnet-lite0", empty, "no pictures"),
        ("nanodet-g", boxes, "no box with a label that the model knows"),
        ("flickr8k-captioner", folders, "has no labels: neither captions.tsv"),
        ("no-such-model", folders, "no-such-model"),
    ]:
        with pytest.raises(DataError, match=line) as caught:
            worker.submit(evaluate, tag, data, out, device="cpu").result()
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nanodet-g is for detection"):
        worker.submit(compare, "efficientnet-lite0", "nanodet-g", folders, out, device="cpu").result()
    with pytest.raises(DataError, match="cannot be written"):
        worker.submit(evaluate, "nanodet-g", boxes, tmp_path / "none" / "report.html", device="cpu").result()
    assert not out.exists()


def test_average_precision_on_coco_equals_the_cards(worker: ProcessPoolExecutor, shared: Path, tmp_path: Path) -> None:
    card = store.read_card(starter.DETECTION)
    coco = shared / "photos" / "coco"
    figures = worker.submit(evaluate, "nanodet-g", coco, tmp_path / "report.html", device="cpu").result()
    assert figures["ap"] == pytest.approx(card.metrics["coco128_ap_measured"], abs=2e-3)
    assert figures["ap50"] == pytest.approx(card.metrics["coco128_ap50_measured"], abs=2e-3)
