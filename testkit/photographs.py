"""Photographs that have known answers, and what is done with them and their answers."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import skimage
from PIL import Image
from ultralytics.utils import ASSETS

from testkit.servers import ROOT

SHARED = ROOT.parent / "shared"
"""Photographs to measure with; not everybody has them."""

PHOTOS: dict[str, Path] = {
    "bus": ASSETS / "bus.jpg",
    "zidane": ASSETS / "zidane.jpg",
    "hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    **{
        name: Path(skimage.__file__).parent / "data" / file
        for name, file in {
            "coffee": "coffee.png",
            "camera": "camera.png",
            "cat": "chelsea.png",
            "motorcycle": "motorcycle_left.png",
            "rocket": "rocket.jpg",
        }.items()
    },
}
"""Photographs that test dependencies ship."""


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def assert_same(answer: Any, alone: Any, min_score: float) -> None:
    """Equal but for 1e-3 in scores and pixels; an object whose score lies at min_score may come or go."""
    if isinstance(alone, dict):
        assert answer.keys() == alone.keys()
        for name in alone.keys() - {"ms"}:
            if name == "objects":
                answer[name], alone[name] = (
                    [found for found in objects if found["score"] > min_score + 1e-3]
                    for objects in (answer[name], alone[name])
                )
            assert_same(answer[name], alone[name], min_score)
    elif isinstance(alone, list):
        assert len(answer) == len(alone)
        for one, other in zip(answer, alone, strict=True):
            assert_same(one, other, min_score)
    elif isinstance(alone, float):
        assert answer == pytest.approx(alone, abs=2e-3)
    else:
        assert answer == alone
