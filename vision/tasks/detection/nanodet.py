"""NanoDet-g, the starter detector: what stands before and after its network (nanodet_module.py)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vision.core import engine
from vision.core.engine import Engine, Floats
from vision.core.pixels import normalize
from vision.core.schemas import Pixels
from vision.tasks.detection.boxes import Found, fit, place, without_overlaps

if TYPE_CHECKING:
    from vision.core.cuda import Plan

# Preprocessing and thresholds of its configuration, nanodet-g.yml.
SIDE = 416
MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)
STD_BGR = np.array([57.375, 57.12, 58.395], np.float32)
NMS_IOU = 0.6
CANDIDATES = 1000


class NanoDetNetwork:
    """A DetectorNetwork (detector.py): letterbox, forward, class-wise non-maximum suppression."""

    def __init__(self, folder: Path, device: str, how: "Plan | None" = None) -> None:
        """Load from a folder with config.json (`labels`, a list of names) and model.safetensors."""
        self.labels: list[str] = json.loads((folder / "config.json").read_text())["labels"]
        self.engine = self._load_engine(folder, device, how)
        self._inputs: Callable[[Sequence[Pixels]], Sequence[NDArray[Any]]]
        self._inputs = self.levels if how else lambda pictures: [self.preprocess(pictures)]

    def _load_engine(self, folder: Path, device: str, how: "Plan | None") -> Engine:
        if how is None and engine.has_graph(folder, device):
            return engine.openvino(folder)
        from vision.tasks.detection import nanodet_module

        self.module: Any = nanodet_module.load(folder, len(self.labels))
        if how is None:
            return engine.eager(self.module, device)
        from vision.core import cuda

        mean, std = MEAN_BGR[::-1].tolist(), STD_BGR[::-1].tolist()
        self.module = cuda.Best(nanodet_module.Letterboxed(self.module, mean, std)).eval()
        return cuda.engine(self.module, how)

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        inputs = [fit(pixels, SIDE) for pixels in pictures]
        scores, boxes = self.engine(*self._inputs(inputs))
        return [self._postprocess(*row, min_score) for row in zip(scores, boxes, inputs, strict=True)]

    def preprocess(self, pictures: Sequence[Pixels]) -> Floats:
        """Letterbox pictures that fit: normalise, and centre on zeros: (B, 3, SIDE, SIDE), BGR."""
        batch = np.zeros((len(pictures), 3, SIDE, SIDE), dtype=np.float32)
        for row, pixels in zip(batch, pictures, strict=True):
            x1, y1, x2, y2 = _placement(pixels)
            [row[:, y1:y2, x1:x2]] = normalize(pixels[None, ..., ::-1], MEAN_BGR, STD_BGR)
        return batch

    def levels(self, pictures: Sequence[Pixels]) -> tuple[Pixels, NDArray[np.int32]]:
        """Letterbox pictures that fit, as nanodet_module.Letterboxed takes them."""
        batch = np.zeros((len(pictures), SIDE, SIDE, 3), np.uint8)
        places = np.array([_placement(pixels) for pixels in pictures], np.int32)
        for row, pixels, (x1, y1, x2, y2) in zip(batch, pictures, places, strict=True):
            row[y1:y2, x1:x2] = pixels
        return batch, places

    def _postprocess(self, scores: Floats, boxes: Floats, pixels: Pixels, min_score: float) -> Found:
        """Scores (N, labels) and boxes (N, 4) of one letterboxed picture -> what is found in the picture."""
        anchors, classes = (scores >= min_score).nonzero()
        score = scores[anchors, classes]
        best = np.argsort(-score, kind="stable")[:CANDIDATES]
        anchors, classes, score = anchors[best], classes[best], score[best]
        keep = without_overlaps(classes, boxes[anchors], NMS_IOU, CANDIDATES)
        return Found(score[keep], classes[keep], place(boxes[anchors[keep]], _placement(pixels)))


def _placement(pixels: Pixels) -> tuple[int, int, int, int]:
    """Where a picture that fits lies in the network's input, xyxy: in the middle."""
    height, width = pixels.shape[:2]
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    return left, top, left + width, top + height
