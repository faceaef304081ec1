"""Two runs over different pictures, of two weeks say: how often each says what, and how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
from scipy.stats import fisher_exact, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from bulk import summary
from bulk.groups import Kind, Results

SHOWN = 20

SCORE: dict[Kind, str] = {
    "labels": "x.labels[1].score",
    "objects": "list_avg([one.score FOR one IN x.objects])",
    "caption": "x.score",
}
"""One number a picture: those of one picture go together."""


class Rate(NamedTuple):
    """In how many of its pictures each run says something; difference: B's share less A's, with its interval."""

    feature: str
    name: str
    pictures_a: int
    pictures_b: int
    a: int
    b: int
    difference: float
    low: float
    high: float
    p: float
    q: float


class Scores(NamedTuple):
    """A picture's scores in the mean, of a run."""

    pictures: int
    mean: float
    variance: float


@dataclass(frozen=True)
class Feature:
    """What each run says. shift: B's mean score less A's, with its interval; None where there are too few."""

    name: str
    a: summary.Feature
    b: summary.Feature
    scores: tuple[Scores, Scores]
    shift: tuple[float, float, float] | None


@dataclass(frozen=True)
class Apart:
    """rates: of all features and errors, the least p first."""

    pictures: tuple[int, int]
    features: Sequence[Feature]
    rates: Sequence[Rate]

    def told(self, feature: str) -> list[Rate]:
        """What the plot shows: the largest difference first."""
        found = [one for one in self.rates if one.feature == feature and one.name not in summary.FUNCTION_WORDS]
        return sorted(found, key=lambda one: (-abs(one.difference), one.p, one.name))[:SHOWN]


def compare(a: Results, b: Results, words: Sequence[tuple[str, str, str, Kind]]) -> Apart:
    """Compare runs without a common picture; words: each feature's name, what each run calls it, its kind."""
    (pictures_a, errors_a, said_a), (pictures_b, errors_b, said_b) = (
        _said(run, [(one[at], one[3]) for one in words]) for run, at in ((a, 1), (b, 2))
    )
    found = rates("errors", pictures_a, pictures_b, errors_a, errors_b)
    features = []
    for (name, *_), (its_a, scores_a), (its_b, scores_b) in zip(words, said_a, said_b, strict=True):
        counts = ({one.name: one.pictures for one in its.found} for its in (its_a, its_b))
        found += rates(name, its_a.answered, its_b.answered, *counts)
        features.append(Feature(name, its_a, its_b, (scores_a, scores_b), shift(scores_a, scores_b)))
    if found:
        corrected = multipletests([one.p for one in found], method="fdr_bh")[1]
        found = [one._replace(q=float(q)) for one, q in zip(found, corrected, strict=True)]
    return Apart((pictures_a, pictures_b), features, sorted(found, key=lambda one: one.p))


def _said(
    run: Results, words: Sequence[tuple[str, Kind]]
) -> tuple[int, dict[str, int], list[tuple[summary.Feature, Scores]]]:
    with run.connected() as rows:
        [(pictures,)] = run.ask(rows, "SELECT count(*) FROM rows")
        errors = dict(run.ask(rows, "SELECT error.code, count(*) FROM rows WHERE status <> 'ok' GROUP BY 1"))
        said = []
        for word, kind in words:
            found = summary.feature(run, rows, word, kind)
            each = f"SELECT {SCORE[kind]} AS s FROM said"  # noqa: S608
            query = f"SELECT count(s), coalesce(avg(s), 0), coalesce(var_samp(s), 0) FROM ({each})"  # noqa: S608
            [scores] = run.ask(rows, query)
            said.append((found, Scores(*scores)))
    return pictures, errors, said


def rates(feature: str, of_a: int, of_b: int, a: Mapping[str, int], b: Mapping[str, int]) -> list[Rate]:
    """Return a rate for each thing said.

    low, high: the 95 % interval of the difference of two independent shares (Newcombe, 1998). p: Fisher's exact test.
    """
    found = []
    for name in sorted(a.keys() | b.keys()) if of_a and of_b else ():
        in_a, in_b = a.get(name, 0), b.get(name, 0)
        low, high = confint_proportions_2indep(in_b, of_b, in_a, of_a, method="newcomb", compare="diff")
        p = float(fisher_exact([[in_a, of_a - in_a], [in_b, of_b - in_b]]).pvalue)
        difference = in_b / of_b - in_a / of_a
        found.append(Rate(feature, name, of_a, of_b, in_a, in_b, difference, float(low), float(high), p, p))
    return found


def shift(a: Scores, b: Scores) -> tuple[float, float, float] | None:
    """Return B's mean less A's and its 95 % interval (Welch, 1947)."""
    if min(a.pictures, b.pictures) < 2:
        return None
    parts = [one.variance / one.pictures for one in (a, b)]
    difference = b.mean - a.mean
    if not sum(parts):
        return difference, difference, difference
    freedom = sum(parts) ** 2 / sum(part**2 / (one.pictures - 1) for part, one in zip(parts, (a, b), strict=True))
    low, high = t.interval(0.95, freedom, difference, sum(parts) ** 0.5)
    return difference, float(low), float(high)


def as_table(found: Apart) -> pa.Table:
    """Return all rates; the shift of a feature's scores is its row named `score`, without counts."""
    rows: list[dict[str, Any]] = [one._asdict() for one in found.rates]
    for one in found.features:
        if one.shift:
            difference, low, high = one.shift
            pictures_a, pictures_b = (scores.pictures for scores in one.scores)
            numbers = {"pictures_a": pictures_a, "pictures_b": pictures_b}
            rows.append(
                {"feature": one.name, "name": "score", "difference": difference, "low": low, "high": high} | numbers
            )
    return pa.Table.from_pylist(rows, SCHEMA)


SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("feature", "name")),
        *((name, pa.int64()) for name in ("pictures_a", "pictures_b", "a", "b")),
        *((name, pa.float64()) for name in ("difference", "low", "high", "p", "q")),
    ]
)
