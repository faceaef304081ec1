"""How a picture is as a photograph: its brightness, contrast and sharpness, and a hash that near copies share."""

import cv2
import numpy as np
from PIL import Image

from vision.core import colours
from vision.core.schemas import Pixels, Quality

SIDE = 256
"""Longer side in pixels at which a picture is measured, so that the same photograph in two sizes measures alike."""

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
    mean, deviation = cv2.meanStdDev(luma)
    _, rough = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return Quality(
        brightness=round(mean.item() / 255, 4),
        contrast=round(deviation.item() / 255, 4),
        sharpness=round(rough.item() ** 2, 2),
        hash=_hash(luma),
    )


def _luma(picture: Image.Image) -> Pixels:
    """Return luma (H, W), 0-255, its longer side at most SIDE."""
    few = np.asarray(picture.reduce(max(1, max(picture.size) // SIDE)))
    pixels = cv2.cvtColor(colours.to_srgb(few, picture), cv2.COLOR_RGB2GRAY)
    height, width = pixels.shape
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(pixels, np.uint8)


def _hash(luma: Pixels) -> str:
    # Not ImageHash itself: it brings SciPy and PyWavelets into every install for these lines.
    small = cv2.resize(luma, (HASHED, HASHED), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:KEPT, :KEPT].round(2)  # beyond lies the noise of float32
    return np.packbits(low > np.median(low)).tobytes().hex()
