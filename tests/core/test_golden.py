"""The pixels that models get of fixed pictures are those that were noted with images.PIXELS, which the cache keys by.

When they change on purpose, raise PIXELS, and `python -m tests.core.test_golden > tests/core/pixels.json`. Kinds of
pictures whose decoders may round differently on other processors (AVIF, HEIF) are left out.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testkit.photographs import encoded
from testkit.profiles import rgb_profile
from vision.core import colours, images, linear
from vision.core.images import PIXELS, decode_reduced
from vision.core.pixels import Steps
from vision.tasks.detection import boxes, resize

pytestmark = pytest.mark.served

KEPT = Path(__file__).with_name("pixels.json")


def drawn(width: int, height: int) -> Image.Image:
    """Slopes, edges and a little noise, in whole numbers."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(7).integers(0, 16, (height, width, 3))
    slopes = np.stack([x * 255 // width, y * 255 // height, (x // 9 + y // 7) % 2 * 200], axis=2)
    return Image.fromarray((slopes + noise).clip(0, 255).astype(np.uint8))


def pictures() -> dict[str, bytes]:
    small, large = drawn(500, 375), drawn(2700, 1900)
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = small.copy()
    clear.putalpha(Image.linear_gradient("L").resize(small.size))
    deep = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    return {
        "JPEG": encoded(small, "JPEG", quality=90),
        "JPEG, reduced": encoded(large, "JPEG", quality=90),
        "JPEG, progressive": encoded(small, "JPEG", quality=80, progressive=True),
        "JPEG, turned": encoded(small, "JPEG", quality=90, exif=turned),
        "JPEG, CMYK": encoded(small.convert("CMYK"), "JPEG", quality=90),
        "JPEG, other colours": encoded(small, "JPEG", quality=90, icc_profile=rgb_profile("ProPhoto RGB")),
        "PNG, reduced": encoded(large),
        "PNG, transparent": encoded(clear),
        "PNG, 16 bits": encoded(deep),
        "GIF": encoded(small, "GIF"),
        "BMP": encoded(small, "BMP"),
        "WEBP, lossless": encoded(small, "WEBP", lossless=True),
    }


STEPS = Steps(resize=256, crop=224, resample="BICUBIC", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
SQUARE = Steps(resize=(224, 224), resample="BILINEAR", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def shown(data: bytes) -> Iterator[tuple[str, Any]]:
    """What becomes of a picture on its way to each kind of network."""
    picture, _ = decode_reduced(data)
    whole = colours.to_srgb(np.asarray(picture), picture)
    yield "whole", whole
    yield "in general", images.shrink(picture)
    for name, steps in (("shorter side", STEPS), ("square", SQUARE)):
        few = colours.to_srgb(steps.shrink(picture), picture)
        yield f"{name}, few", few
        yield name, steps([few])
    yield "letterboxed", boxes.fit(whole, 416)
    yield "linear", linear.resize(whole, 300, 400)
    yield "antialiased", resize.resize(whole, 200, 300)


def found() -> dict[str, Any]:
    signatures = {
        f"{name}: {step}": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        for name, data in pictures().items()
        for step, value in shown(data)
    }
    return {"PIXELS": PIXELS, "signatures": signatures}


def test_pixels_change_with_their_version_alone() -> None:
    kept, now = json.loads(KEPT.read_text()), found()
    changed = [name for name, value in now["signatures"].items() if kept["signatures"].get(name) != value]
    assert kept["PIXELS"] == PIXELS, "PIXELS was raised: note the pixels again, as this file's docstring says."
    assert not changed, f"Pixels changed: raise images.PIXELS, and note them again. {changed}"
    assert kept["signatures"].keys() == now["signatures"].keys()


if __name__ == "__main__":
    print(json.dumps(found(), indent=1))
