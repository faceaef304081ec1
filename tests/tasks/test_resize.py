"""Detectors that transformers loads are shown the same bytes with torchvision and without."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vision.tasks.detection.resize import resize


@pytest.mark.parametrize("shape", [(480, 640), (1080, 810), (640, 640), (97, 1301), (3, 7), (1, 1)])
def test_it_resizes_to_the_level_as_torchvision_does(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [640, 600], antialias=True)
    assert np.array_equal(resize(pixels, 640, 600), expected.permute(1, 2, 0).numpy())
