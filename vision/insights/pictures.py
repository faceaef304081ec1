"""What insights know of pictures: the signals that rows hold, wherever the rows came from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vision.core.schemas import ErrorBody, Quality
from vision.core.subject import Box

DETECTION = "detection"
"""The feature whose objects tell who is in a picture."""

QUALITY = "quality"

NEAR = 8
"""Bits of 64 in which the hashes of near duplicates differ at most."""


class Sight(NamedTuple):
    """A label of a picture, or an object in it; a label has no box."""

    label: str
    score: float
    box: Box | None = None


class Picture(NamedTuple):
    """What was seen in a picture.

    size: (width, height) in pixels. seen: by feature, best first; what was not asked, or failed, is not in it.
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


def near_duplicates(pictures: Sequence[Picture]) -> list[list[int]]:
    """Return the indices of pictures that look the same, in groups: each is near to another of its group."""
    hashes = [int(one.quality.hash, 16) if one.quality else None for one in pictures]
    group = list(range(len(pictures)))
    for second, its in enumerate(hashes):
        for first, other in enumerate(hashes[:second]):
            near = its is not None and other is not None and (its ^ other).bit_count() <= NEAR
            if near and group[first] != group[second]:
                old, new = group[second], group[first]
                group = [new if one == old else one for one in group]
    groups: dict[int, list[int]] = {}
    for index, of in enumerate(group):
        groups.setdefault(of, []).append(index)
    return [members for members in groups.values() if len(members) > 1]
