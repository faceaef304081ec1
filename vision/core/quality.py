"""How a picture is as a photograph: its brightness, contrast and sharpness, and a hash that near copies share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision.core import colours
from vision.core.linear import resize
from vision.core.schemas import Pixels, Quality

SIDE = 256
"""Longer side in pixels at which a picture is measured, so that the same photograph in two sizes measures alike."""

LUMA = (9798 / 32768, 19235 / 32768, 3735 / 32768, 0)
"""Of red, green and blue: 0.299, 0.587 and 0.114 in fifteen bits, with which every sum is exact."""

HASHED, KEPT = 32, 8
"""Sides of what is transformed for the hash, and of the lowest frequencies that are kept of it."""


def measure(picture: Image.Image) -> Quality:
    """Measure a picture as images.decode_reduced() returns it.

    It is averaged down to a longer side of SIDE pixels; a smaller one stays as it is. Luma is ITU-R BT.601's, 0-1.
    brightness: the mean luma. contrast: its standard deviation (RMS contrast: Peli, Contrast in complex images, 1990).
    sharpness: the variance of the Laplacian of luma in levels of 255 (Pech-Pacheco et al., Diatom autofocusing, 2000).
    hash: which of the lowest 8 x 8 frequencies of 32 x 32 luma lie above their median (pHash: Zauner, 2010), in
    ImageHash's order of bits. Near copies differ in few of the 64.
    """
    luma = _luma(picture)
    return Quality(
        brightness=round(luma.mean().item() / 255, 4),
        contrast=round(luma.std().item() / 255, 4),
        sharpness=round(_laplacian(luma).var().item(), 2),
        hash=_hash(luma),
    )


def _luma(picture: Image.Image) -> Pixels:
    """Return luma (H, W), 0-255, its longer side at most SIDE."""
    factor = max(picture.size) // SIDE
    few = picture.reduce(factor) if factor > 1 else picture
    if picture.info:  # in other colours
        few = Image.fromarray(colours.to_srgb(np.asarray(few), picture))
    pixels = np.asarray(few.convert("L", LUMA))
    height, width = pixels.shape
    scale = SIDE / max(height, width)
    if scale < 1:
        pixels = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    return pixels


def _laplacian(luma: Pixels) -> NDArray[np.int16]:
    """Return the sum of each one's four neighbours less four times itself; at the edges, mirrored ones."""
    around = np.pad(luma.astype(np.int16), 1, mode="reflect")
    middle = around[1:-1, 1:-1]
    return np.asarray(around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * middle)


def _hash(luma: Pixels) -> str:
    # Not ImageHash itself: it brings SciPy and PyWavelets into every install for these lines.
    small = (_shares(_shares(luma).T).T * (HASHED**2 / luma.size)).round()
    low = (COSINES @ small @ COSINES.T).round(2)  # beyond lies noise
    return np.packbits(low > np.median(low)).tobytes().hex()


def _shares(levels: NDArray[Any]) -> NDArray[np.float64]:
    """Sum the rows of (H, W) into HASHED; one on a border by its shares.

    Not by the matrix that says the same, which would wake all threads of NumPy's BLAS.
    """
    edges = np.arange(HASHED + 1)[:, None] * len(levels) / HASHED
    rows = edges.astype(np.int64)[:, 0]
    sums = np.add.reduceat(levels, rows[:-1], axis=0, dtype=np.float64)
    sums[rows[1:] == rows[:-1]] = 0  # of no row, where reduceat returns one
    cut = edges % 1 * levels[rows.clip(max=len(levels) - 1)]
    return sums + np.diff(cut, axis=0)


def _cosines() -> NDArray[np.float64]:
    """Return the lowest frequencies of the orthonormal discrete cosine transform, DCT-II (KEPT, HASHED)."""
    waves = np.cos(np.pi / HASHED * np.arange(KEPT)[:, None] * (np.arange(HASHED) + 0.5)) * (2 / HASHED) ** 0.5
    waves[0] /= 2**0.5
    return np.asarray(waves)


COSINES = _cosines()
