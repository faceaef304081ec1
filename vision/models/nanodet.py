"""NanoDet-g, the starter detector: what stands before and after its network (nanodet_module.py)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vision.models import engine
from vision.models.detector import Found
from vision.models.engine import Engine, Floats
from vision.models.pixels import normalize
from vision.schemas import Pixels

# Preprocessing and thresholds of its configuration, nanodet-g.yml.
SIDE = 416
MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)
STD_BGR = np.array([57.375, 57.12, 58.395], np.float32)
NMS_IOU = 0.6
CANDIDATES = 1000


class NanoDetNetwork:
    """A Network (detector.py): letterbox, forward, class-wise non-maximum suppression."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load from a folder with config.json (`labels`, a list of names) and model.safetensors."""
        self.labels: list[str] = json.loads((folder / "config.json").read_text())["labels"]
        self.engine = self._load_engine(folder, device)

    def _load_engine(self, folder: Path, device: str) -> Engine:
        if engine.has_graph(folder, device):
            return engine.openvino(folder)
        from vision.models import nanodet_module

        return engine.eager(nanodet_module.load(folder, len(self.labels)), device)

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        scores, boxes = self.engine(self.preprocess(pictures))
        return [self._postprocess(*row, min_score) for row in zip(scores, boxes, pictures, strict=True)]

    def preprocess(self, pictures: Sequence[Pixels]) -> Floats:
        """Letterbox each: resize to fit, normalise, and centre on zeros: (B, 3, SIDE, SIDE), BGR."""
        batch = np.zeros((len(pictures), 3, SIDE, SIDE), dtype=np.float32)
        for row, pixels in zip(batch, pictures, strict=True):
            x1, y1, x2, y2 = _placement(pixels)
            # Plain bilinear, as it was trained with: antialiased shrinking costs 0.012 AP on 128 COCO photographs.
            rgb: Any = cv2.resize(pixels, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
            [row[:, y1:y2, x1:x2]] = normalize(rgb[None, ..., ::-1], MEAN_BGR, STD_BGR)
        return batch

    def _postprocess(self, scores: Floats, boxes: Floats, pixels: Pixels, min_score: float) -> Found:
        """Scores (N, labels) and boxes (N, 4) of one letterboxed picture -> what is found in the picture."""
        anchors, classes = (scores >= min_score).nonzero()
        score = scores[anchors, classes]
        best = np.argsort(-score, kind="stable")[:CANDIDATES]
        anchors, classes, score = anchors[best], classes[best], score[best]
        corners = boxes[anchors]
        rects = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
        # its threshold is of scores, which are all high enough
        kept = cv2.dnn.NMSBoxesBatched(rects.tolist(), score.tolist(), classes.tolist(), 0.0, NMS_IOU)
        keep = np.array(kept, np.int64)
        x1, y1, x2, y2 = _placement(pixels)
        offset, extent = np.array([x1, y1, x1, y1]), np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
        placed = ((corners[keep] - offset) / extent).clip(0, 1)
        return Found(score[keep], classes[keep], placed.astype(np.float32))


def _placement(pixels: Pixels) -> tuple[int, int, int, int]:
    """Where a picture lies in the network's input, xyxy: scaled, up or down, to fit, and centred."""
    scale = SIDE / max(pixels.shape[:2])
    width, height = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    return left, top, left + width, top + height
