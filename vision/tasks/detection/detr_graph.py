"""RT-DETR, D-FINE, DETR and kin on a saved graph: what stands before and after it, without transformers and torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vision.core import engine
from vision.core.engine import GRAPH_CONFIG, Floats
from vision.core.pixels import Steps, normalize
from vision.core.schemas import Pixels
from vision.tasks.detection.boxes import Found
from vision.tasks.detection.resize import resize

Scores = Literal["sigmoid", "softmax"]
"""Each label is scored for itself, and a query may have several; or a query has one label, or, the last, none."""


class GraphDetr:
    """A DetectorNetwork (detector.py) as graphs/export.py saves it; openvino.json says what stands around the graph."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / GRAPH_CONFIG).read_text())
        self.labels: list[str] = config["labels"]
        self.scores: Scores = config["scores"]
        self.most: int = config["most"]
        self.steps = Steps.load(folder)
        self.engine = engine.openvino(folder)

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        logits, boxes = self.engine(preprocess(self.steps, pictures))
        return [found(*row, self.scores, self.most, min_score) for row in zip(logits, boxes, strict=True)]


def is_saved(folder: Path, device: str) -> bool:
    """Whether a model has all that GraphDetr needs."""
    file = folder / GRAPH_CONFIG
    return engine.has_graph(folder, device) and file.is_file() and "scores" in json.loads(file.read_text())


def preprocess(steps: Steps, pictures: Sequence[Pixels]) -> Floats:
    """Return what the network takes, (B, 3, H, W), as transformers' processors for torchvision make it."""
    mean, std = np.array([steps.mean, steps.std], np.float32) * 255
    return normalize(np.stack([resize(pixels, *steps.size) for pixels in pictures]), mean, std)


def found(logits: Floats, boxes: Floats, scores: Scores, most: int, min_score: float) -> Found:
    """Logits (N, labels), with softmax one more for none, and boxes (N, 4), centre and size -> the `most` best at most.

    As transformers' post_process_object_detection does it.
    """
    if scores == "sigmoid":
        each: Floats = np.asarray(1 / (1 + np.exp(-logits)), np.float32).ravel()
        best = np.argsort(-each, kind="stable")[:most]
        score, (queries, classes) = each[best], np.divmod(best, logits.shape[1])
    else:
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        each = np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)[:, :-1]
        queries = np.argsort(-each.max(axis=1), kind="stable")[:most]
        classes = each[queries].argmax(axis=1)
        score = each[queries, classes]
    kept = score > min_score
    centre, half = boxes[queries[kept], :2], boxes[queries[kept], 2:] / 2
    corners: Floats = np.concatenate([centre - half, centre + half], axis=1)
    return Found(score[kept], classes[kept], corners.clip(0, 1))
