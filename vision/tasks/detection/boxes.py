"""What detectors share: resizing to a side, placing boxes, removing overlaps."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.core.linear import resize
from vision.core.schemas import Pixels


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
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        width = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
        height = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
        shared = width.clip(0) * height.clip(0)
        overlaps = shared > iou * (areas[best] + areas[left] - shared)
        left = left[~overlaps | (classes[left] != classes[best])]
    return np.array(kept, np.int64)
