"""Whether two answers about a picture are the same, but for what arithmetic may change."""

from benchmarks.case import Answer

SCORE, PIXELS, SHOWN = 1e-2, 2.0, 0.3
"""Tolerances; objects that score less than SHOWN are not compared."""


def difference(ours: Answer, theirs: Answer) -> str:
    """Say what differs, in a few words; nothing when the answers are the same."""
    if "labels" in ours:
        return _labels(ours["labels"][0], theirs["labels"][0])
    if "caption" in ours:
        return "" if ours["caption"] == theirs["caption"] else f"{theirs['caption']!r}, not {ours['caption']!r}"
    return _objects(ours["objects"], theirs["objects"]) or _objects(theirs["objects"], ours["objects"])


def _labels(ours: Answer, theirs: Answer) -> str:
    same = ours["label"] == theirs["label"] and abs(ours["score"] - theirs["score"]) <= SCORE
    return "" if same else f"{theirs['label']} {theirs['score']:.3f}, not {ours['label']} {ours['score']:.3f}"


def _objects(some: list[Answer], others: list[Answer]) -> str:
    """Each of some has its like among others; one that scores about SHOWN may come or go."""
    shown = [one for one in some if one["score"] >= SHOWN + SCORE]
    alone = [one for one in shown if not any(_same(one, other) for other in others)]
    if not alone:
        return ""
    first = f"{alone[0]['label']} {alone[0]['score']:.3f} {[round(side, 1) for side in alone[0]['box']]}"
    return f"{len(alone)} of {len(shown)} objects, as {first}"


def _same(one: Answer, other: Answer) -> bool:
    return (
        one["label"] == other["label"]
        and abs(one["score"] - other["score"]) <= SCORE
        and all(abs(a - b) <= PIXELS for a, b in zip(one["box"], other["box"], strict=True))
    )
