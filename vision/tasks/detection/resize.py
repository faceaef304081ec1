"""Bilinear resizing of bytes as torchvision does it, to the level, without torch.

That is Pillow's algorithm with weights of sixteen bits in place of 22; a level in a sixth of the pixels is the
difference, and detectors whose boxes should be the same are shown the same.
"""

import numpy as np

from vision.core.schemas import Pixels


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return (height, width, 3) of any (H, W, 3), antialiased."""
    return _along(_along(pixels, width, axis=1), height, axis=0)


def _along(pixels: Pixels, size: int, axis: int) -> Pixels:
    """Resize one axis. PyTorch: aten/src/ATen/native/cpu/UpSampleKernel.cpp, compute_index_ranges_int16_weights."""
    there = pixels.shape[axis]
    if there == size:
        return pixels
    scale = there / size
    support = max(scale, 1.0)
    centre = scale * (np.arange(size) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), there)
    at = first[:, None] + np.arange((end - first).max())
    weights = (1 - np.abs((at - centre[:, None] + 0.5) / support)).clip(0)
    weights[at >= end[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = (0.5 + weights * (1 << bits)).astype(np.int32)
    shape = [-1 if index == axis else 1 for index in range(3)]
    total = np.int32(1 << (bits - 1))
    for place, weight in zip(at.T.clip(0, there - 1), whole.T, strict=True):
        total = total + pixels.take(place, axis) * weight.reshape(shape)
    return np.asarray((total >> bits).clip(0, 255), np.uint8)
