"""Ultralytics' YOLO detectors: what stands before and after their networks (yolo_module.py).

Preprocessing and thresholds are those of Ultralytics' own predict, so that both give the same boxes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vision.core import engine
from vision.core.engine import GRAPH_CONFIG, Engine, Floats
from vision.core.schemas import Pixels
from vision.tasks.detection.boxes import Found, by_shape, fit, place, without_overlaps

if TYPE_CHECKING:
    from vision.core.cuda import Plan

NMS_IOU = 0.7
MAX_DETECTIONS = 300
STRIDE = 32
GREY = 114


class YoloNetwork:
    """A DetectorNetwork (detector.py): letterbox to the smallest rectangle, forward, NMS where the network needs it."""

    def __init__(self, folder: Path, device: str, how: "Plan | None" = None) -> None:
        """Load from a folder with config.json (`labels`, `side`), and a graph or model.safetensors."""
        config = json.loads((folder / "config.json").read_text())
        self.labels: list[str] = config["labels"]
        self.side: int = config["side"]
        self.engine: Engine
        # As Ultralytics' own predict does with pictures of several shapes: on a GPU all stand in one batch.
        self.multiple = self.side if how else STRIDE
        if how is None and engine.has_graph(folder, device):
            self.end2end: bool = json.loads((folder / GRAPH_CONFIG).read_text())["end2end"]
            self.engine = engine.openvino(folder)
            return
        from vision.tasks.detection import yolo_module

        module = yolo_module.load(folder)
        self.end2end = module.end2end
        if how is None:
            self.engine = engine.eager(module, device)
            return
        from vision.core import cuda

        self.module = cuda.Best(module).eval()
        self.engine = cuda.engine(self.module, how)

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        fitted = [fit(pixels, self.side) for pixels in pictures]
        inputs = [self.preprocess(pixels) for pixels in fitted]
        found: dict[int, Found] = {}
        for indices in by_shape(inputs):
            outputs = self.engine(np.stack([inputs[index] for index in indices]))
            for index, scores, boxes in zip(indices, *outputs, strict=True):
                one = _best(scores, boxes, min_score) if self.end2end else _suppressed(scores, boxes, min_score)
                found[index] = one._replace(boxes=place(one.boxes, self._placement(fitted[index])))
        return [found[index] for index in range(len(pictures))]

    def preprocess(self, pixels: Pixels) -> Pixels:
        """Letterbox a picture that fits: pad both sides with grey to the next multiples of the network's stride.

        On a GPU to a square.
        """
        x, y, _, _ = self._placement(pixels)
        height, width = pixels.shape[:2]
        right, bottom = (self.side - width) % self.multiple - x, (self.side - height) % self.multiple - y
        return np.pad(pixels, ((y, bottom), (x, right), (0, 0)), constant_values=GREY)

    def _placement(self, pixels: Pixels) -> tuple[int, int, int, int]:
        """Where a picture that fits lies in the network's input, xyxy."""
        height, width = pixels.shape[:2]
        left, top = (self.side - width) % self.multiple // 2, (self.side - height) % self.multiple // 2
        return left, top, left + width, top + height


def _best(scores: Floats, boxes: Floats, min_score: float) -> Found:
    """Of the anchor points (N, labels) that score highest, what scores more than min_score; one may have two labels."""
    anchors = np.argsort(-scores.max(axis=1), kind="stable")[:MAX_DETECTIONS]
    rows, classes = (scores[anchors] > min_score).nonzero()
    score = scores[anchors[rows], classes]
    best = np.argsort(-score, kind="stable")[:MAX_DETECTIONS]
    return Found(score[best], classes[best], boxes[anchors[rows[best]]])


def _suppressed(scores: Floats, boxes: Floats, min_score: float) -> Found:
    """The best label of each anchor point (N, labels) that scores more than min_score, without overlaps."""
    best = scores.max(axis=1)
    [likely] = (best > min_score).nonzero()
    likely = likely[np.argsort(-best[likely], kind="stable")]
    classes = scores[likely].argmax(axis=1)
    kept = without_overlaps(classes, boxes[likely], NMS_IOU, MAX_DETECTIONS)
    return Found(best[likely][kept], classes[kept], boxes[likely][kept])
