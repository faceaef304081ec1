"""RT-DETR, D-FINE and kin from a saved graph; they need no NMS (https://arxiv.org/abs/2304.08069)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision.models import engine
from vision.models.detector import Found
from vision.models.engine import GRAPH_CONFIG, Floats, sigmoid
from vision.models.pixels import Steps
from vision.schemas import Pixels


class DetrNetwork:
    """A Network (detector.py) as train_and_save/export.py saves it: a graph, and openvino.json for what stands around.

    The best pairs of a query and a label are taken, as many as there are queries, as transformers'
    RTDetrImageProcessor.post_process_object_detection does.
    """

    def __init__(self, folder: Path) -> None:
        self.labels: list[str] = json.loads((folder / GRAPH_CONFIG).read_text())["labels"]
        self.preprocess = Steps.load(folder)
        self.engine = engine.openvino(folder)

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        outputs = self.engine(self.preprocess(pictures))
        return [_best(logits, boxes, min_score) for logits, boxes in zip(*outputs, strict=True)]


def _best(logits: Floats, boxes: Floats, min_score: float) -> Found:
    """Of queries with logits (N, labels) and boxes (N, 4), centre and size as 0-1."""
    scores = sigmoid(logits).ravel()
    best = np.argsort(-scores, kind="stable")[: len(boxes)]
    best = best[scores[best] > min_score]
    queries, classes = np.divmod(best, logits.shape[1])
    centres, sizes = np.split(boxes[queries], 2, axis=1)
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return Found(scores[best], classes, corners.clip(0, 1))
