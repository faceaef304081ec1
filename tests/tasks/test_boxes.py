"""Of boxes that overlap, those are kept that torchvision keeps."""

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from vision.tasks.detection.boxes import BLOCK, without_overlaps

IOU = 0.6


@pytest.mark.parametrize(("count", "labels"), [(0, 3), (1, 1), (40, 5), (3 * BLOCK + 7, 1), (800, 60)])
def test_the_best_of_those_that_overlap_are_kept(count: int, labels: int) -> None:
    draw = np.random.default_rng(count)
    classes = draw.integers(0, labels, count)
    corners = draw.random((count, 2), np.float32) * 300
    boxes = np.concatenate([corners, corners + 20 + draw.random((count, 2), np.float32) * 80], axis=1)
    scores = torch.arange(count, 0, -1, dtype=torch.float32)
    expected: set[int] = set()
    for label in range(labels):
        [these] = (classes == label).nonzero()
        expected |= set(these[nms(torch.from_numpy(boxes[these]), scores[these.tolist()], IOU).numpy()].tolist())
    kept = without_overlaps(classes, boxes, IOU, 1000)
    assert kept.tolist() == sorted(expected)
    assert count < 200 or len(kept) < count
    assert without_overlaps(classes, boxes, IOU, 5).tolist() == sorted(expected)[:5]
