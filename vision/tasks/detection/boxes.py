"""What detectors share: resizing to a side, placing boxes, removing overlaps."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.core.linear import resize
from vision.core.schemas import Pixels

BLOCK = 64
"""Boxes that are compared with all that follow at a time, for the sake of memory."""


class Found(NamedTuple):
    """What a network found in one picture, overlaps removed, best first.

    scores (N,), 0-1; classes (N,), int64 indices of its labels; boxes (N, 4), xyxy normalised 0-1.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]


def by_shape(inputs: Sequence[Any]) -> list[list[int]]:
    """Return the indices of those that may stand in one batch without padding."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(inputs):
        groups[tuple(one.shape)].append(index)
    return list(groups.values())


def fit(pixels: Pixels, side: int) -> Pixels:
    """Resize a picture so that its longer side is `side`, up or down; no side is under 1.

    Plain bilinear, as NanoDet and YOLO were trained with: antialiased shrinking costs NanoDet-g 0.012 AP on 128 COCO
    photographs.
    """
    scale = side / max(pixels.shape[:2])
    width, height = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return resize(pixels, height, width)


def place(boxes: NDArray[np.float32], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Boxes xyxy (N, 4) in a network's input -> normalised 0-1 in the picture, which lies in `box` there."""
    x1, y1, x2, y2 = box
    placed = (boxes - np.array([x1, y1, x1, y1])) / np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    return placed.clip(0, 1).astype(np.float32)


def without_overlaps(
    classes: NDArray[np.int64], boxes: NDArray[np.float32], iou: float, most: int
) -> NDArray[np.int64]:
    """Class-wise non-maximum suppression of boxes xyxy (N, 4), best first: return the indices of `most` at most.

    In OpenCV's, thousands of boxes take ten times as long.
    """
    kept = np.ones(len(boxes), np.bool_)
    for which in np.flatnonzero(np.bincount(classes) > 1):
        of_class = np.flatnonzero(classes == which)
        kept[of_class] = _best(boxes[of_class], iou, most)
    return np.flatnonzero(kept)[:most]


def _best(boxes: NDArray[np.float32], iou: float, most: int) -> NDArray[np.bool_]:
    """Return which boxes (N, 4), best first, overlap with none that is better and kept: `most`, or a few more."""
    kept = np.ones(len(boxes), np.bool_)
    x1, y1, x2, y2 = boxes.T.copy()
    areas = (x2 - x1) * (y2 - y1)
    for start in range(0, len(boxes), BLOCK):
        if np.count_nonzero(kept[:start]) >= most:
            kept[start:] = False
            break
        better = start + kept[start : start + BLOCK].nonzero()[0]
        one, others = (better, None), slice(start, None)
        shared = (np.minimum(x2[one], x2[others]) - np.maximum(x1[one], x1[others])).clip(0)
        shared *= (np.minimum(y2[one], y2[others]) - np.maximum(y1[one], y1[others])).clip(0)
        free = ~(shared > iou * (areas[one] + areas[others] - shared))
        for index, row in zip(better.tolist(), free, strict=True):
            if kept[index]:
                kept[index + 1 :] &= row[index + 1 - start :]
    return kept
