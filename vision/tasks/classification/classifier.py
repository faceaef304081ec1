"""Classification: the steps that every classifier shares; behind them is a saved graph, or a transformers model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vision.core import engine
from vision.core.device import Device
from vision.core.engine import GRAPH_CONFIG, Floats
from vision.core.pixels import Steps
from vision.core.schemas import Card, Item, Model, Pixels
from vision.tasks.classification.spec import Classification, ClassifyOptions, Label


class ClassifierNetwork(Protocol):
    labels: list[str]
    multi_label: bool
    """Whether each label is scored for itself; else the scores are a distribution."""

    def preprocess(self, pictures: Sequence[Pixels]) -> NDArray[Any]:
        """Return (B, 3, H, W), normalised; for a GPU (B, H, W, 3) as bytes, where that is known how to."""
        ...

    def engine(self, inputs: NDArray[Any]) -> tuple[Floats, ...]:
        """Return the logits (B, labels) alone."""
        ...


def load_network(folder: Path, device: Device) -> ClassifierNetwork:
    if device.how is None and engine.has_graph(folder, device.name) and (folder / GRAPH_CONFIG).is_file():
        return GraphNetwork(folder)
    from vision.tasks.classification.transformers_classifier import TransformersNetwork

    return TransformersNetwork(folder, device.name, device.how)


class Classifier:
    def __init__(self, folder: Path, card: Card, device: Device) -> None:
        """Load from a folder in Hugging Face layout, weights as safetensors, with or without a graph."""
        self.card = card
        self.network = load_network(folder, device)

    def predict(self, items: Sequence[Item[ClassifyOptions]]) -> list[Classification]:
        """Return one result an item, in order."""
        [logits] = self.network.engine(self.network.preprocess([item.pixels for item in items]))
        scores = _sigmoid(logits) if self.network.multi_label else _softmax(logits)
        return [self._postprocess(row, item.options) for row, item in zip(scores, items, strict=True)]

    def _postprocess(self, scores: Floats, options: ClassifyOptions) -> Classification:
        best = np.argsort(-scores, kind="stable")[: options.top_k]
        labels = [
            Label(label=self.network.labels[index], score=round(score, 6))
            for index, score in zip(best.tolist(), scores[best].tolist(), strict=True)
            if score >= options.min_score
        ]
        return Classification(labels=labels, model=Model.of(self.card))


def _sigmoid(logits: Floats) -> Floats:
    # exp of a large number would overflow; this form has none
    return np.asarray(np.exp(-np.logaddexp(0, -logits)), np.float32)


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


class GraphNetwork:
    """A ClassifierNetwork as graphs/export.py saves it: a graph, and openvino.json for what stands around it."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / GRAPH_CONFIG).read_text())
        self.labels: list[str] = config["labels"]
        self.multi_label: bool = config["multi_label"]
        self.preprocess = Steps.load(folder)
        self.engine = engine.openvino(folder)
