"""Two runs over the same pictures: rates with intervals, shifts of scores, and where they disagree, the worst first."""

import heapq
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from bulk import UserError, apart, page
from bulk.groups import ROWS, Kind, Results, quoted
from bulk.summary import BINS, FUNCTION_WORDS, Histogram, boxes

SHOWN, DRAWN = 20, 12
"""Rates of a plot, and disagreements below it, a feature."""
KEPT = 1000
"""Disagreements of a feature that the table has."""
SAME = 0.5
"""Intersection over union from which boxes of one label are the same object, as in COCO's and Pascal VOC's AP50."""

Answer = Mapping[str, Any]


class Rate(NamedTuple):
    """In how many of the same pictures each run says something; difference: B's share less A's, with its interval."""

    feature: str
    name: str
    pictures: int
    a: int
    b: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p: float
    q: float


class Disagreement(NamedTuple):
    """How far two answers about a picture lie apart; the id breaks ties."""

    how_far: float
    id: str
    uri: str
    size: tuple[int, int]
    a: Answer
    b: Answer


@dataclass
class Shift:
    """Scores of what both runs say: the mean of B's less A's."""

    pictures: int
    mean: float
    low: float
    high: float
    plot: Histogram


@dataclass
class Feature:
    """A feature of each run, side by side: the words by which each run calls it."""

    a: str
    b: str
    kind: Kind
    pictures: int = 0
    differ: int = 0
    both: Counter[str] = field(default_factory=Counter)
    only_a: Counter[str] = field(default_factory=Counter)
    only_b: Counter[str] = field(default_factory=Counter)
    shifts: "array[float]" = field(default_factory=lambda: array("d"))
    worst: list[Disagreement] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.a if self.a == self.b else f"{self.a} beside {self.b}"

    def add(self, row: Mapping[str, Any], a: Answer, b: Answer) -> None:
        self.pictures += 1
        says_a, says_b = says(self.kind, a), says(self.kind, b)
        self.both.update(says_a & says_b)
        self.only_a.update(says_a - says_b)
        self.only_b.update(says_b - says_a)
        far, shifts = APART[self.kind](a, b)
        self.shifts.extend(shifts)
        if far > 0:
            self.differ += 1
            found = Disagreement(far, row["id"], row["uri"], (row["width"], row["height"]), a, b)
            (heapq.heappush if len(self.worst) < KEPT else heapq.heappushpop)(self.worst, found)

    def shift(self) -> Shift | None:
        """Return the shift of scores; None where too few are the same to tell."""
        if len(self.shifts) < 2:
            return None
        values = np.frombuffer(self.shifts)
        low, high = DescrStatsW(values).tconfint_mean() if values.any() else (0.0, 0.0)
        edges = np.linspace(-1, 1, 2 * BINS + 2)  # an odd number of bins: no change lies in the middle of one
        counts, _ = np.histogram(values, edges)
        names = [f"{start:+.2f} to {end:+.2f}" for start, end in pairwise(edges)]
        ticks = [(0, "-1"), (0.25, "-0.5"), (0.5, "0"), (0.75, "+0.5"), (1, "+1")]
        plot = Histogram("score of B less score of A", names, counts.tolist(), ticks)
        return Shift(len(values), float(values.mean()), float(low), float(high), plot)


@dataclass(frozen=True)
class Comparison:
    """rates: of all features and errors, the least p first. a_only, b_only: pictures that the other run has not."""

    pictures: int
    a_only: int
    b_only: int
    features: Sequence[Feature]
    rates: Sequence[Rate]

    def of(self, feature: str) -> list[Rate]:
        return [one for one in self.rates if one.feature == feature]

    def told(self, feature: Feature) -> list[Rate]:
        """What the plot shows: what differs, the largest difference first."""
        found = [one for one in self.of(feature.name) if one.only_a + one.only_b and one.name not in _silent(feature)]
        return sorted(found, key=lambda one: (-abs(one.difference), one.p, one.name))[:SHOWN]


def _silent(feature: Feature) -> frozenset[str]:
    return FUNCTION_WORDS if feature.kind == "caption" else frozenset()


def compare(a: Results, b: Results) -> Comparison | apart.Apart:
    """Compare what two runs say of the pictures that both have, by their bytes; of their own, if they share none.

    Raises UserError.
    """
    features = pairs(a, b)
    errors = Feature("errors", "errors", "labels")
    with a.connected() as rows:
        b.view(rows, "others")
        counts = a.ask(
            rows,
            "SELECT count(*) FILTER (o.sha256 IS NOT NULL), count(*) FILTER (o.sha256 IS NULL) "
            "FROM (SELECT DISTINCT sha256 FROM rows WHERE sha256 IS NOT NULL) r "
            "LEFT JOIN (SELECT DISTINCT sha256 FROM others) o USING (sha256)",
        )
        [(pictures, a_only)] = counts
        [(in_b,)] = a.ask(rows, "SELECT count(DISTINCT sha256) FROM others")
        if not pictures:
            return apart.compare(a, b, [(one.name, one.a, one.b, one.kind) for one in features])
        for row in _both(a, rows, features):
            _add_errors(errors, row)
            for index, feature in enumerate(features):
                if row[f"a{index}"] and row[f"b{index}"]:
                    feature.add(row, row[f"a{index}"], row[f"b{index}"])
    for feature in features:
        feature.worst.sort(key=lambda one: (-one.how_far, one.id))
    return Comparison(pictures, a_only, in_b - pictures, features, rates([errors, *features]))


def pairs(a: Results, b: Results) -> list[Feature]:
    """Return what can be compared: features of one word, or what each run alone has of a kind. Raises UserError."""
    found = [Feature(word, word, kind) for word, kind in a.kinds.items() if b.kinds.get(word) == kind]
    same = {one.a for one in found}
    for kind in dict.fromkeys(a.kinds.values()):
        rest = [[word for word, its in some.kinds.items() if its == kind and word not in same] for some in (a, b)]
        if [len(words) for words in rest] == [1, 1]:
            found.append(Feature(rest[0][0], rest[1][0], kind))
    if not found:
        raise UserError(
            f"{a.folder} has {', '.join(a.kinds) or 'no feature'}, {b.folder} {', '.join(b.kinds) or 'no feature'}: "
            "there is nothing to compare."
        )
    return found


def _both(a: Results, rows: Any, features: Sequence[Feature]) -> Iterator[dict[str, Any]]:
    answers = "".join(
        f", r.{quoted(one.a)} AS a{index}, o.{quoted(one.b)} AS b{index}" for index, one in enumerate(features)
    )
    query = (
        f"SELECT r.id, r.uri, r.width, r.height, r.error AS a_error, o.error AS b_error{answers} "  # noqa: S608
        "FROM (SELECT sha256, min(id) AS id FROM rows GROUP BY sha256) a "
        "JOIN (SELECT sha256, min(id) AS id FROM others GROUP BY sha256) b USING (sha256) "
        "JOIN rows r ON r.id = a.id JOIN others o ON o.id = b.id"
    )
    for batch in rows.sql(query).to_arrow_reader(ROWS):
        yield from batch.to_pylist()


def _add_errors(errors: Feature, row: Mapping[str, Any]) -> None:
    errors.pictures += 1
    a, b = ({row[name]["code"]} if row[name] else set[str]() for name in ("a_error", "b_error"))
    errors.both.update(a & b)
    errors.only_a.update(a - b)
    errors.only_b.update(b - a)


def says(kind: Kind, answer: Answer) -> set[str]:
    """Return what an answer says: its best label, its objects, or its words."""
    if kind == "labels":
        return {one["label"] for one in answer["labels"][:1]}
    if kind == "objects":
        return {one["label"] for one in answer["objects"]}
    return set(re.findall(r"[^\W_]+", answer["caption"].lower()))


def _labels_apart(a: Answer, b: Answer) -> tuple[float, list[float]]:
    """Of best labels: how much more sure each run is of its own than of the other's, in the mean."""
    scores_a, scores_b = ({one["label"]: one["score"] for one in answer["labels"]} for answer in (a, b))
    if not scores_a or not scores_b:
        return max([*scores_a.values(), *scores_b.values()], default=0), []
    best_a, best_b = next(iter(scores_a)), next(iter(scores_b))
    if best_a == best_b:
        return 0, [scores_b[best_b] - scores_a[best_a]]
    sure_a = scores_a[best_a] - scores_a.get(best_b, 0)
    sure_b = scores_b[best_b] - scores_b.get(best_a, 0)
    return max((sure_a + sure_b) / 2, 1e-9), []


def _objects_apart(a: Answer, b: Answer) -> tuple[float, list[float]]:
    """Of objects: the sum of the scores of those that the other run has not; of the others, the shifts."""
    left = list(b["objects"])
    far, shifts = 0.0, []
    for one in a["objects"]:  # best first
        alike = [other for other in left if other["label"] == one["label"]]
        near = max(alike, key=lambda other: _overlap(one["box"], other["box"]), default=None)
        if near and _overlap(one["box"], near["box"]) >= SAME:
            left.remove(near)
            shifts.append(near["score"] - one["score"])
        else:
            far += one["score"]
    return far + sum(one["score"] for one in left), shifts


def _captions_apart(a: Answer, b: Answer) -> tuple[float, list[float]]:
    """Of captions: the share of their words, but for those that say nothing alone, that only one of them has."""
    shifts = [b["score"] - a["score"]]
    if a["caption"] == b["caption"]:
        return 0, shifts
    words_a, words_b = (says("caption", answer) - FUNCTION_WORDS for answer in (a, b))
    return max(len(words_a ^ words_b) / max(len(words_a | words_b), 1), 1e-9), shifts


APART = {"labels": _labels_apart, "objects": _objects_apart, "caption": _captions_apart}


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - both)


def rates(features: Sequence[Feature]) -> list[Rate]:
    """Return a rate for each thing said, the least p first.

    low, high: the 95 % interval of the difference of paired shares, half a picture added to each cell (Agresti and Min,
    2005). p: McNemar's exact test. q: p by Benjamini and Hochberg, of all rates together.
    """
    found = []
    for one in features:
        for name in sorted(one.both.keys() | one.only_a.keys() | one.only_b.keys()):
            both, a, b = one.both[name], one.only_a[name], one.only_b[name]
            cells = np.array([b, a, both, one.pictures - both - a - b]) + 0.5
            low, high = DescrStatsW(np.array([1.0, -1, 0, 0]), weights=cells).tconfint_mean()
            p = float(mcnemar([[both, a], [b, 0]], exact=True).pvalue) if a + b else 1.0
            difference = (b - a) / one.pictures
            counts = (one.pictures, both + a, both + b, a, b)
            found.append(Rate(one.name, name, *counts, difference, float(low), float(high), p, p))
    if not found:
        return []
    corrected = multipletests([one.p for one in found], method="fdr_bh")[1]
    found = [one._replace(q=float(q)) for one, q in zip(found, corrected, strict=True)]
    return sorted(found, key=lambda one: one.p)


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("feature", "name")),
        *((name, pa.int64()) for name in ("pictures", "a", "b", "only_a", "only_b")),
        *((name, pa.float64()) for name in ("difference", "low", "high", "p", "q")),
    ]
)
"""Of the table of rates; the shift of a feature's scores is its row without a name's counts, named `score`."""

DISAGREEMENTS = pa.schema(
    [("feature", pa.string()), ("how_far", pa.float64()), *((name, pa.string()) for name in ("id", "uri", "a", "b"))]
)


def write_apart(a: Results, b: Results, found: apart.Apart, out: Path) -> None:
    """Write compare.html of runs without a common picture, and its table as Parquet and CSV, into a folder."""
    table = apart.as_table(found)
    pq.write_table(table, out / "compare.parquet")
    pa.csv.write_csv(table, out / "compare.csv")
    lines = {name: found.told(name) for name in ("errors", *(one.name for one in found.features))}
    plots_of = {name: page.intervals([one[6:9] for one in some]) for name, some in lines.items()}
    values = {"found": found, "lines": lines, "plots_of": plots_of, "width": page.WIDTH}
    page.write(out / "compare.html", "apart.html.j2", a=a, b=b, **values)


def write(a: Results, b: Results, found: Comparison, out: Path) -> None:
    """Write compare.html, and its tables as Parquet and CSV, into a folder."""
    shifts = {one.name: one.shift() for one in found.features}
    rows = [one._asdict() for one in found.rates]
    for name, shift in shifts.items():
        if shift:
            numbers = {"difference": shift.mean, "low": shift.low, "high": shift.high}
            rows.append({"feature": name, "name": "score", "pictures": shift.pictures, **numbers})
    worst = [
        {"feature": feature.name, "how_far": one.how_far, "id": one.id, "uri": one.uri}
        | {"a": told(feature.kind, one.a), "b": told(feature.kind, one.b)}
        for feature in found.features
        for one in feature.worst
    ]
    for name, table in {
        "compare": pa.Table.from_pylist(rows, SCHEMA),
        "disagreements": pa.Table.from_pylist(worst, DISAGREEMENTS),
    }.items():
        pq.write_table(table, out / f"{name}.parquet")
        pa.csv.write_csv(table, out / f"{name}.csv")
    lines = {one.name: found.told(one) for one in found.features}
    page.write(
        out / "compare.html",
        a=a,
        b=b,
        found=found,
        errors=[one for one in found.of("errors") if one.a or one.b],
        shifts=shifts,
        lines=lines,
        plots_of={name: page.intervals([one[7:10] for one in some]) for name, some in lines.items()},
        width=page.WIDTH,
        drawn=lambda one, answer: page.drawn(one.uri, [boxes(answer, *one.size)]),
        thumbnail=lambda one: page.thumbnail(one.uri, page.DRAWN),
        told=told,
        most=DRAWN,
        asked=lambda some, word: some.asked["features"].get(word, {}),
    )


def told(kind: Kind, answer: Answer) -> str:
    """Say an answer in a line."""
    if kind == "caption":
        return str(answer["caption"])
    if kind == "labels":
        return " · ".join(f"{one['label']} {one['score']:.0%}" for one in answer["labels"][:3]) or "nothing"
    count = Counter(one["label"] for one in answer["objects"])
    return " · ".join(f"{number} {label}" if number > 1 else label for label, number in count.items()) or "nothing"
