"""The page that an impact leaves: one HTML file with its plot and pictures inside, and nothing to fetch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageDraw

from bulk import page
from bulk.impact import Finding, Impact
from bulk.signals import Example

DETAILED, PLOTTED = 20, 40
"""Clusters that are told with pictures, and that are drawn."""
SIDE = 220


@dataclass(frozen=True)
class Line:
    """A line of the plot: a cluster's leader, and where its effect and interval lie, 0 to page.WIDTH."""

    finding: Finding
    at: float
    start: float
    end: float


def write(found: Impact, out: Path) -> None:
    """Write impact.html into a folder."""
    leaders = [one for one in found.findings if one.leads]
    told = [one for one in leaders if one.survives][:DETAILED]
    places, zero = page.intervals([(one.effect, one.low, one.high) for one in leaders[:PLOTTED]])
    page.write(
        out / "impact.html",
        picture=picture,
        found=found,
        lines=[Line(one, *place) for one, place in zip(leaders[:PLOTTED], places, strict=True)],
        width=page.WIDTH,
        zero=zero,
        told=told,
        others={one.cluster: [other for other in found.findings if other.cluster == one.cluster] for one in told},
        survivors=sum(one.survives for one in found.findings),
    )


def picture(example: Example) -> dict[str, Any]:
    """Return a picture small, as a data: address, with what was seen in a box; without one where it is not here."""
    found = page.small(example.uri, SIDE)
    if found is None:
        return {"name": example.uri, "group": example.group, "data": None}
    shown, size = found
    if example.box:
        x, y = shown.width / size[0], shown.height / size[1]
        x1, y1, x2, y2 = example.box
        ImageDraw.Draw(shown).rectangle((x1 * x, y1 * y, x2 * x, y2 * y), outline="#e07b00", width=2)
    return {"name": example.uri, "group": example.group, "data": page.as_data(shown)}
