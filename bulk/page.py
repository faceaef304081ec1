"""Pages that bulk leaves: one HTML file each with its plots and pictures inside, and nothing to fetch."""

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from bulk import addresses
from bulk.addresses import Entry
from vision.core import colours, draw, images
from vision.core.errors import VisionError
from vision.core.schemas import Marks

WIDTH = 560
"""Of intervals that are drawn, in pixels."""

DRAWN = 640
"""Longer side of a picture with marks: what vision.core.draw can be read at."""


def write(path: Path, template: str | None = None, **values: Any) -> None:
    """Write a page from a template; by default that of its name: page.html from page.html.j2."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    environment.filters |= {
        "number": lambda value: f"{value:,.3g}",
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{value:.1%}",
        "points": lambda value: f"{100 * value:+.1f}",
    }
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    path.write_text(environment.get_template(template or f"{path.name}.j2").render(made=made, **values))


def intervals(found: Sequence[tuple[float, float, float]]) -> tuple[list[tuple[float, float, float]], float]:
    """Lay out values and their intervals on one scale, 0 to WIDTH, on which 0 always lies; return 0's place, too."""
    ends = [0.0, *(end for _, *both in found for end in both)]
    low, high = min(ends), max(ends)

    def x(value: float) -> float:
        return round((value - low) / ((high - low) or 1) * WIDTH, 1)

    return [(x(value), x(start), x(end)) for value, start, end in found], x(0)


def small(uri: str, side: int) -> tuple[Image.Image, tuple[int, int]] | None:
    """Return a picture in sRGB, its longer side at most `side`, and its size in full; None where it is not here.

    Remote ones are not fetched.
    """
    where = uri.split("::")[-1]
    if addresses.is_remote(where) and not where.startswith("file://"):
        return None
    try:
        picture, size = images.decode_reduced(addresses.read(Entry("", None, uri)))
    except (OSError, ValueError, VisionError):
        return None
    pixels = colours.to_srgb(images.shrink(picture), picture)
    shown = Image.fromarray(pixels).convert("RGB")
    shown.thumbnail((side, side))
    return shown, size


def drawn(uri: str, marks: Sequence[Marks]) -> str | None:
    """Return a picture with its marks as a data: address; None where it is not here."""
    found = small(uri, DRAWN)
    return as_data(draw.draw(found[0], marks)) if found else None


def thumbnail(uri: str, side: int = 320) -> str | None:
    """Return a picture as a data: address; None where it is not here."""
    found = small(uri, side)
    return as_data(found[0]) if found else None


def as_data(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
