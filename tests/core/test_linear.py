"""Detectors are shown the levels that OpenCV's INTER_LINEAR makes, which they were trained with."""

import platform

import cv2
import numpy as np
import pytest

from vision.core.linear import resize, resize_without_opencv

LEVELS = 0 if platform.machine() == "x86_64" else 1
"""By which OpenCV's own builds for other processors may differ."""


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((375, 500), (312, 416)),
        ((200, 300), (277, 416)),
        ((960, 1280), (480, 640)),  # OpenCV averages an exact half
        ((1301, 97), (640, 48)),
        ((3, 7), (178, 416)),
        ((900, 2), (416, 1)),
        ((1, 1), (33, 32)),
    ],
)
def test_it_resizes_to_the_level_as_opencv_does(
    before: tuple[int, int], after: tuple[int, int], channels: tuple[int, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*before, *channels), np.uint8)
    expected = cv2.resize(pixels, after[::-1], interpolation=cv2.INTER_LINEAR).reshape(*after, *channels)
    assert np.array_equal(resize(pixels, *after), expected)
    assert np.abs(resize_without_opencv(pixels, *after).astype(int) - expected).max() <= LEVELS


def test_mirrored_and_turned_pixels_are_read_where_they_lie() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for view in (pixels[:, ::-1], pixels.transpose(1, 0, 2), pixels[::2, ::2]):
        for one in (resize, resize_without_opencv):
            assert np.array_equal(one(view, 41, 53), one(view.copy(), 41, 53))
