"""Whom a picture is of: the largest person, and where that person's head is."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

HEAD = "@head"
"""How the word of a feature ends that is asked about the main subject's head."""

PERSON, LEAST_SCORE = "person", 0.3
"""Who counts: a person that a detector is as sure of as this."""

HEIGHT, WIDER, ABOVE = 0.5, 1.2, 0.1
"""A head's square: as wide as the box, at most HEIGHT of its height; WIDER by a margin, ABOVE of it over the box."""


class ObjectLike(Protocol):
    """An object, as detectors answer it."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def box(self) -> Box | None: ...


ObjectT = TypeVar("ObjectT", bound=ObjectLike)


def area(found: ObjectLike) -> float:
    """Return a box's area in pixels; nothing has none."""
    x1, y1, x2, y2 = found.box or (0, 0, 0, 0)
    return (x2 - x1) * (y2 - y1)


def people(objects: Iterable[ObjectT], least: float = LEAST_SCORE) -> list[ObjectT]:
    """Return the persons among objects, in their order."""
    return [one for one in objects if one.label.lower() == PERSON and one.score >= least]


def main(objects: Iterable[ObjectT]) -> ObjectT | None:
    """Return the main subject: the person with the largest box."""
    return max(people(objects), key=area, default=None)


def head(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return where a person's head is, for a box of the person in a picture of `size`: at the top, in the middle.

    Whole pixels within the picture, at least one wide and high. Measured by benchmarks/sunglasses.py.
    """
    x1, y1, x2, y2 = box
    side = max(1.0, min(x2 - x1, HEIGHT * (y2 - y1)))
    middle, half = (x1 + x2) / 2, side * WIDER / 2
    left, right = _within(middle - half, middle + half, size[0])
    top, bottom = _within(y1 - ABOVE * side, y1 + (WIDER - ABOVE) * side, size[1])
    return left, top, right, bottom


def _within(start: float, end: float, most: int) -> tuple[int, int]:
    first = min(max(0, round(start)), most - 1)
    return first, min(most, max(first + 1, round(end)))
