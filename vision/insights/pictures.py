"""What insights know of a picture: the signals that one row holds, wherever the row came from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vision.core.schemas import ErrorBody, Quality

DETECTION = "detection"
"""The feature whose objects tell who is in a picture."""

PERSON = "person"

SUNGLASSES = "sunglasses"
"""The feature that tells whether the main subject wears them, and its label."""

QUALITY = "quality"

NEAR = 8
"""Bits of 64 in which the hashes of near duplicates differ at most."""

Box = tuple[float, float, float, float]


class Sight(NamedTuple):
    """A label of a picture, or an object in it; `box` as x1, y1, x2, y2 in pixels, None for a label."""

    label: str
    score: float
    box: Box | None = None

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box or (0, 0, 0, 0)
        return (x2 - x1) * (y2 - y1)


class Picture(NamedTuple):
    """What was seen in a picture.

    size: (width, height) in pixels. seen: by feature, best first; a feature that failed here is not in it.
    quality: None where it was not measured. error: why nothing was seen; then all else is empty.
    """

    size: tuple[int, int]
    seen: Mapping[str, Sequence[Sight]]
    quality: Quality | None = None
    error: ErrorBody | None = None

    @classmethod
    def of(cls, size: tuple[int, int], results: Mapping[str, Any], quality: Quality | None) -> "Picture":
        """Make it of results as endpoints answer them, by feature; what has neither labels nor objects is left out."""
        seen: dict[str, list[Sight]] = {}
        for feature, result in results.items():
            if result and "labels" in result:
                seen[feature] = [Sight(one["label"], one["score"]) for one in result["labels"]]
            elif result and "objects" in result:
                seen[feature] = [Sight(one["label"], one["score"], tuple(one["box"])) for one in result["objects"]]
        return cls(size, seen, quality)

    @classmethod
    def failed(cls, error: ErrorBody) -> "Picture":
        return cls((0, 0), {}, None, error)

    def people(self, min_score: float) -> list[Sight] | None:
        """Return the persons, best first; None where nobody looked for them."""
        if DETECTION not in self.seen:
            return None
        return [one for one in self.seen[DETECTION] if one.label.lower() == PERSON and one.score >= min_score]

    def subject(self, min_score: float) -> Sight | None:
        """Return the main subject: the person with the largest box."""
        return max(self.people(min_score) or (), key=lambda person: person.area, default=None)


def near_duplicates(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return the indices of pictures that look the same, in groups: each is near to another of its group."""
    hashes = [int(one.quality.hash, 16) if one.quality else None for one in pictures]
    group = list(range(len(pictures)))
    for second, its in enumerate(hashes):
        for first, other in enumerate(hashes[:second]):
            if its is not None and other is not None and (its ^ other).bit_count() <= NEAR:
                old, new = group[second], group[first]
                group = [new if one == old else one for one in group]
    groups: dict[int, list[int]] = {}
    for index, of in enumerate(group):
        groups.setdefault(of, []).append(index)
    return [members for members in groups.values() if len(members) > 1]
