"""The page that an impact leaves: one HTML file with its plot and pictures inside, and nothing to fetch."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import ImageDraw

from bulk.impact import Finding, Impact
from bulk.signals import Example
from vision.core import images
from vision.core.errors import VisionError

DETAILED, PLOTTED = 20, 40
"""Clusters that are told with pictures, and that are drawn."""
SIDE = 220
WIDTH = 560
"""Of the plot's lines, in pixels."""


@dataclass(frozen=True)
class Line:
    """A line of the plot: a cluster's leader, and where its effect and interval lie, 0 to WIDTH."""

    finding: Finding
    at: float
    start: float
    end: float


def write(found: Impact, out: Path) -> None:
    """Write impact.html into a folder."""
    leaders = [one for one in found.findings if one.leads]
    told = [one for one in leaders if one.survives][:DETAILED]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters |= {"picture": picture, "number": lambda value: f"{value:,.3g}"}
    page = environment.get_template("impact.html.j2").render(
        found=found,
        lines=plot(leaders[:PLOTTED]),
        width=WIDTH,
        zero=_x(leaders[:PLOTTED], 0),
        told=told,
        others={one.cluster: [other for other in found.findings if other.cluster == one.cluster] for one in told},
        survivors=sum(one.survives for one in found.findings),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    (out / "impact.html").write_text(page)


def plot(findings: Sequence[Finding]) -> list[Line]:
    """Lay out effects and intervals on one scale, on which 0 always lies."""
    return [Line(one, *(_x(findings, value) for value in (one.effect, one.low, one.high))) for one in findings]


def _x(findings: Sequence[Finding], value: float) -> float:
    ends = [0.0, *(end for one in findings for end in (one.low, one.high))]
    low, high = min(ends), max(ends)
    return round((value - low) / ((high - low) or 1) * WIDTH, 1)


def picture(example: Example) -> dict[str, Any]:
    """Return a picture small, as a data: address, with what was seen in a box; without one where it is not here."""
    path = Path(example.uri.removeprefix("file://"))
    try:
        small, size = images.decode_reduced(path.read_bytes())
    except (OSError, ValueError, VisionError):
        return {"name": example.uri, "group": example.group, "data": None}
    small = small.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    if example.box:
        x, y = small.width / size[0], small.height / size[1]
        x1, y1, x2, y2 = example.box
        ImageDraw.Draw(small).rectangle((x1 * x, y1 * y, x2 * x, y2 * y), outline="#e07b00", width=2)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"name": example.uri, "group": example.group, "data": data}
