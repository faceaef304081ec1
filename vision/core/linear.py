"""Bilinear resizing of bytes as OpenCV does it: by OpenCV where it is installed, else to the level without its 160 MB.

That is INTER_LINEAR, which most detectors are trained with: between the four nearest pixels, however much smaller the
picture gets.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision.core.schemas import Pixels

BITS = 11
"""Of a weight."""

ROWS = 32
"""Of the result, made at once: what they take stays in the processor's cache."""


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return (height, width, C) of any (H, W, C), or (height, width) of (H, W)."""
    if OPENCV:
        return np.asarray(OPENCV(pixels, (width, height)))  # INTER_LINEAR is its default
    return resize_without_opencv(pixels, height, width)


def _opencv() -> Callable[..., Any] | None:
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)  # pictures are what runs beside each other
    return cv2.resize


OPENCV = _opencv()
"""A full install has it, and what scores collections: a tenth of the time."""


def resize_without_opencv(pixels: Pixels, height: int, width: int) -> Pixels:
    """As resize(). OpenCV: imgproc/src/resize.cpp, resizeGeneric_ of uchar."""
    if pixels.ndim == 2:
        return resize_without_opencv(pixels[..., None], height, width)[..., 0]
    there, across, channels = pixels.shape
    if (there, across) == (height, width):
        return pixels
    if (there, across, channels) == (2 * height, 2 * width, 3):
        return np.asarray(Image.fromarray(pixels).reduce(2))  # the same levels in a third of the time
    columns, horizontal = _between(across, width)
    flat = (columns[..., None] * channels + np.arange(channels)).reshape(2, -1)
    left, right = horizontal.repeat(channels, axis=1)
    rows, vertical = _between(there, height)
    lines = np.ascontiguousarray(pixels).reshape(there, -1)
    out = np.empty((height, width * channels), np.uint8)
    for start in range(0, height, ROWS):
        part = slice(start, start + ROWS)
        needed, at = np.unique(rows[:, part], return_inverse=True)
        few = lines[needed]
        wide = few.take(flat[0], axis=1) * left
        wide += few.take(flat[1], axis=1) * right
        wide >>= 4
        upper, lower = wide[at[0]], wide[at[1]]
        upper *= vertical[0, part, None]
        upper >>= 16
        lower *= vertical[1, part, None]
        lower >>= 16
        upper += lower
        upper += 2
        upper >>= 2
        out[part] = upper
    return out.reshape(height, width, channels)


def _between(there: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return which two pixels of a side each of `size` lies between (2, size), and their weights, 2 ** BITS in all."""
    centres = ((np.arange(size) + 0.5) * (there / size) - 0.5).astype(np.float32)
    first = np.floor(centres)
    nearer = centres - first
    weights = np.rint(np.stack([1 - nearer, nearer]) * (1 << BITS)).astype(np.int32)
    return np.stack([first, first + 1]).clip(0, there - 1).astype(np.int64), weights
