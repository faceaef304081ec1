"""Signals: what each group's pictures show, as numbers that may go with an outcome."""

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bulk.groups import Shown
from vision.core.subject import Box
from vision.insights.pictures import DETECTION
from vision.insights.profile import Insights

Floats = NDArray[np.float64]
Kind = Literal["any", "all", "share", "mean"]

EXAMPLES = 4
MEASURES = ("brightness", "contrast", "sharpness")


class Example(NamedTuple):
    """A picture that shows a signal; the higher `score`, the better."""

    score: float
    group: str
    uri: str
    box: Box | None


@dataclass
class SignalValues:
    """A signal's numbers by group: shares are 0 where a group is not named, means are unknown there."""

    groups: "array[int]" = field(default_factory=lambda: array("l"))
    numbers: "array[float]" = field(default_factory=lambda: array("d"))
    examples: list[Example] = field(default_factory=list)

    def add(self, group: int, number: float) -> None:
        self.groups.append(group)
        self.numbers.append(number)

    def show(self, *examples: Example) -> None:
        self.examples = heapq.nlargest(EXAMPLES, [*self.examples, *examples])


@dataclass(frozen=True)
class Signal:
    """What is compared with an outcome: one of the ways in which a group may show something."""

    feature: str
    label: str
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.feature} {self.label}, {self.kind}"


class Signals:
    """Collects groups; groups count from 0 in the order in which they come."""

    def __init__(self) -> None:
        self.pictures = array("d")
        self.shares: dict[tuple[str, str], SignalValues] = {}
        self.means: dict[tuple[str, str], SignalValues] = {}

    def add(self, name: str, shown: Sequence[Shown], found: Insights) -> None:
        group = len(self.pictures)
        self.pictures.append(found.answered)
        for sighting in found.seen:
            if (sighting.feature, sighting.label.lower()) == (DETECTION, "person"):
                continue  # people are counted below
            values = self.shares.setdefault((sighting.feature, sighting.label), SignalValues())
            values.add(group, sighting.share)
            best = max(sighting.evidence, key=lambda one: one.score)
            values.show(Example(best.score, name, shown[best.picture].uri, best.box))
        self._add_people(group, name, shown, found)
        self._add_quality(group, name, shown, found)

    def _add_people(self, group: int, name: str, shown: Sequence[Shown], found: Insights) -> None:
        counts = [count for count in found.people.counts if count is not None]
        for label, some in {
            "a person": [count > 0 for count in counts],
            "one person only": [count == 1 for count in counts],
            "several people": [count > 1 for count in counts],
            "sunglasses on the main subject": [worn for worn in found.main_subject.sunglasses if worn is not None],
        }.items():
            if any(some):
                self.shares.setdefault(("people", label), SignalValues()).add(group, sum(some) / len(some))
        if counts:
            self.means.setdefault(("people", "number"), SignalValues()).add(group, sum(counts) / len(counts))
        for index, (count, worn) in enumerate(zip(found.people.counts, found.main_subject.sunglasses, strict=True)):
            uri = shown[index].uri
            if worn:
                self._show("sunglasses on the main subject", Example(1, name, uri, found.main_subject.boxes[index]))
            if count:
                self._show("one person only" if count == 1 else "several people", Example(1, name, uri, None))

    def _show(self, label: str, example: Example) -> None:
        values = self.shares[("people", label)]
        if len(values.examples) < EXAMPLES:
            values.show(example)

    def _add_quality(self, group: int, name: str, shown: Sequence[Shown], found: Insights) -> None:
        measured = [(index, quality) for index, quality in enumerate(found.quality) if quality]
        for measure in MEASURES if measured else ():
            numbers = [(float(getattr(quality, measure)), index) for index, quality in measured]
            values = self.means.setdefault(("quality", measure), SignalValues())
            values.add(group, sum(number for number, _ in numbers) / len(numbers))
            number, index = max(numbers)
            values.show(Example(number, name, shown[index].uri, None))
        alike = [index for some in found.near_duplicates for index in some]
        if alike:
            values = self.shares.setdefault(("quality", "near duplicates"), SignalValues())
            values.add(group, len(alike) / len(measured))
            values.show(*(Example(1, name, shown[index].uri, None) for index in alike[:2]))


@dataclass
class SignalTable:
    """Signals beside an outcome, a row a group. numbers: (groups, signals)."""

    signals: list[Signal]
    numbers: NDArray[np.float32]
    examples: dict[tuple[str, str], list[Example]]

    def __post_init__(self) -> None:
        self.has = np.count_nonzero(self.numbers, axis=0)


def table(collected: Signals, rows: NDArray[np.int64], support: int) -> SignalTable:
    """Return the signals of some groups that at least `support` of them have, and as many have not.

    rows: by group its place among those that are compared, -1 for the others. A share is compared as any, all and share
    where each of these tells groups apart; a mean in its standard deviations, groups without one at the mean.
    """
    kept = int((rows >= 0).sum())
    signals: list[Signal] = []
    columns: list[NDArray[np.float32]] = []

    def put(feature: str, label: str, kind: Kind, column: Floats) -> None:
        signals.append(Signal(feature, label, kind))
        columns.append(column.astype(np.float32))

    for (feature, label), values in collected.shares.items():
        share = _column(values, rows, kept, 0)
        shown, throughout = share > 0, share >= 1
        if support <= shown.sum() <= kept - support:
            put(feature, label, "any", shown.astype(float))
        if support <= throughout.sum() <= kept - support and (throughout != shown).any():
            put(feature, label, "all", throughout.astype(float))
        between = ((share > 0) & (share < 1)).sum()
        if support <= between and share[share > 0].std() > 1e-6:  # else it says what `any` says
            put(feature, label, "share", share)
    for (feature, label), values in collected.means.items():
        mean = _column(values, rows, kept, np.nan)
        known = ~np.isnan(mean)
        if known.sum() >= 2 * support and mean[known].std() > 1e-6:
            standard = (mean - mean[known].mean()) / mean[known].std()
            put(feature, label, "mean", np.where(known, standard, 0))
    numbers = np.stack(columns, axis=1) if columns else np.zeros((kept, 0), np.float32)
    everything = {**collected.shares, **collected.means}
    return SignalTable(signals, numbers, {key: values.examples for key, values in everything.items()})


def _column(values: SignalValues, rows: NDArray[np.int64], kept: int, default: float) -> Floats:
    column = np.full(kept, default, np.float64)
    at = rows[np.frombuffer(values.groups, np.int64)]
    column[at[at >= 0]] = np.frombuffer(values.numbers, np.float64)[at >= 0]
    return column
