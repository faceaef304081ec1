"""What a scored collection shows: how often each label, object and word, scores, quality, errors and duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from bulk import page
from bulk.duplicates import Duplicates, duplicates
from bulk.groups import Kind, Results, quoted
from vision.core.schemas import Marks

SHOWN, PICTURES = 25, 8
"""Rows of a plot, and pictures below it."""

BINS = 20

FUNCTION_WORDS = frozenset(
    "a an and are as at behind beside by down for from front has her his in into is it its near next of off on onto or "
    "out over s some that the their there this through to two under up while with".split()
)
"""English words that say nothing of a picture alone: they stand in the table and not in the plot."""


class Frequency(NamedTuple):
    """A label, an object or a word: how many pictures have it, how often it is there, and the one that scores best."""

    name: str
    pictures: int
    times: int
    score: float
    id: str
    uri: str


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins; ticks: what to write at a place between 0 and 1."""

    title: str
    names: Sequence[str]
    counts: Sequence[int]
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Feature:
    """What a feature said: `answered` pictures of which it said something, or that there is nothing."""

    word: str
    kind: Kind
    answered: int
    found: Sequence[Frequency]
    scores: Histogram
    numbers: Histogram | None
    """Of objects, how many a picture has."""

    @property
    def told(self) -> list[Frequency]:
        """What the plot shows."""
        plain = self.kind != "caption"
        return [one for one in self.found if plain or one.name not in FUNCTION_WORDS][:SHOWN]


@dataclass(frozen=True)
class Summary:
    listed: int
    pictures: int
    failed: int
    bytes: int
    errors: Sequence[tuple[str, int, str]]
    """Code, pictures, and the message of one of them."""
    features: Sequence[Feature]
    quality: Sequence[Histogram]
    extremes: Sequence[tuple[str, str, str]]
    """What a picture is the most of, its id and uri."""
    duplicates: Duplicates


def summary(results: Results) -> Summary:
    """Count; memory does not grow with the pictures, but for their hashes. Raises UserError."""
    with results.connected() as rows:
        counted = "SELECT count(*), count(*) FILTER (status <> 'ok'), coalesce(sum(bytes), 0) FROM rows"
        [(pictures, failed, size)] = results.ask(rows, counted)
        errors = (
            "SELECT error.code, count(*), min(error.message) FROM rows WHERE status <> 'ok' GROUP BY 1 ORDER BY 2 DESC"
        )
        return Summary(
            results.manifest.get("pictures", pictures),
            pictures,
            failed,
            int(size),
            results.ask(rows, errors),
            [feature(results, rows, word, kind) for word, kind in results.kinds.items()],
            _quality(results, rows),
            _extremes(results, rows),
            duplicates(results, rows),
        )


SAID: dict[Kind, str] = {
    "labels": (
        "SELECT id, uri, x.labels[1].label AS name, x.labels[1].score AS score, true AS is_first "
        "FROM said WHERE len(x.labels) > 0"
    ),
    "objects": (
        "SELECT id, uri, one.label AS name, one.score AS score, list_position(names, one.label) = place AS is_first "
        "FROM (SELECT id, uri, [one.label FOR one IN x.objects] AS names, "
        "unnest(x.objects) AS one, generate_subscripts(x.objects, 1) AS place FROM said)"
    ),
    "caption": (
        "SELECT id, uri, name, score, list_position(names, name) = place AS is_first "
        "FROM (SELECT id, uri, score, names, unnest(names) AS name, generate_subscripts(names, 1) AS place "
        r"FROM (SELECT id, uri, x.score AS score, regexp_extract_all(lower(x.caption), '[\p{L}\p{N}]+') AS names "
        "FROM said))"
    ),
}
"""What each answer says, one a row, and whether it is the first of its name in a picture.

Pictures are counted by that: to count different ids, DuckDB would hold them all.
"""

SCORES: dict[Kind, str] = {**SAID, "caption": "SELECT x.score AS score FROM said"}


def feature(results: Results, rows: duckdb.DuckDBPyConnection, word: str, kind: Kind) -> Feature:
    """Count what a feature said. Leaves its answers in the view `said`, as `x`. Raises UserError."""
    answers = f"SELECT id, uri, {quoted(word)} AS x FROM rows WHERE x IS NOT NULL"  # noqa: S608
    rows.execute(f"CREATE OR REPLACE TEMP VIEW said AS {answers}")
    found = results.ask(
        rows,
        "SELECT name, count(*) FILTER (is_first), count(*), avg(score), arg_max(id, score), arg_max(uri, score) "  # noqa: S608
        f"FROM ({SAID[kind]}) GROUP BY 1 ORDER BY 2 DESC, 1",
    )
    [(answered,)] = results.ask(rows, "SELECT count(*) FROM said")
    scores = f"SELECT least(floor(score * {BINS}), {BINS - 1})::INT, count(*) FROM ({SCORES[kind]}) GROUP BY 1"  # noqa: S608
    objects = f"SELECT least(len(x.objects), {BINS}), count(*) FROM said GROUP BY 1"  # noqa: S608
    title = {"labels": "scores of the best label", "objects": "scores of objects", "caption": "scores of captions"}[
        kind
    ]
    return Feature(
        word,
        kind,
        answered,
        [Frequency(*one) for one in found],
        _shares(title, results.ask(rows, scores), 1),
        _numbers(results.ask(rows, objects)) if kind == "objects" else None,
    )


def _quality(results: Results, rows: duckdb.DuckDBPyConnection) -> list[Histogram]:
    found = []
    for name, most in (("brightness", 1), ("contrast", 0.5)):
        binned = f"least(floor(quality.{name} / {most} * {BINS}), {BINS - 1})::INT"
        query = f"SELECT {binned}, count(*) FROM rows WHERE quality IS NOT NULL GROUP BY 1"  # noqa: S608
        found.append(_shares(name, results.ask(rows, query), most))
    powers = f"least(floor(log10(greatest(quality.sharpness, 1)) * {BINS} / 5), {BINS - 1})::INT"
    query = f"SELECT {powers}, count(*) FROM rows WHERE quality IS NOT NULL GROUP BY 1"  # noqa: S608
    counts = dict(results.ask(rows, query))
    names = [f"{10 ** (at * 5 / BINS):,.0f} to {10 ** ((at + 1) * 5 / BINS):,.0f}" for at in range(BINS)]
    ticks = [(power / 5, f"{10**power:,}") for power in range(5)]
    return [*found, Histogram("sharpness", names, [counts.get(at, 0) for at in range(BINS)], ticks)]


def _extremes(results: Results, rows: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str]]:
    found = []
    for title, choose in {
        "darkest": "arg_min({0}, quality.brightness)",
        "brightest": "arg_max({0}, quality.brightness)",
        "least contrast": "arg_min({0}, quality.contrast)",
        "least sharp": "arg_min({0}, quality.sharpness)",
    }.items():
        query = f"SELECT {choose.format('id')}, {choose.format('uri')} FROM rows WHERE quality IS NOT NULL"  # noqa: S608
        [(id, uri)] = results.ask(rows, query)
        if uri is not None:
            found.append((title, id, uri))
    return found


def _shares(title: str, found: Sequence[tuple[int, int]], most: float) -> Histogram:
    counts = dict(found)
    names = [f"{at * most / BINS:.3g} to {(at + 1) * most / BINS:.3g}" for at in range(BINS)]
    ticks = [(part, f"{part * most:g}") for part in (0, 0.25, 0.5, 0.75, 1)]
    return Histogram(title, names, [counts.get(at, 0) for at in range(BINS)], ticks)


def _numbers(found: Sequence[tuple[int, int]]) -> Histogram:
    counts = dict(found)
    names = [*map(str, range(BINS)), f"{BINS} or more"]
    ticks = [((at + 0.5) / len(names), names[at]) for at in range(0, BINS, 5)]
    return Histogram("objects in a picture", names, [counts.get(at, 0) for at in range(len(names))], ticks)


SCHEMA = pa.schema(
    [
        ("feature", pa.string()),
        ("about", pa.string()),
        ("name", pa.string()),
        ("pictures", pa.int64()),
        ("share", pa.float64()),
        ("times", pa.int64()),
        ("mean_score", pa.float64()),
    ]
)
"""Of the table. about: label, object, word, error, duplicates, or the title of a histogram, whose bins are names."""

ABOUT: dict[Kind, str] = {"labels": "label", "objects": "object", "caption": "word"}


def as_table(found: Summary) -> pa.Table:
    """Return all numbers of the page, and what it has no place for."""
    rows: list[dict[str, Any]] = []

    def put(feature: str, about: str, name: str, pictures: int, of: int, **more: Any) -> None:
        share = pictures / of if of else None
        rows.append({"feature": feature, "about": about, "name": name, "pictures": pictures, "share": share, **more})

    for code, count, _ in found.errors:
        put("", "error", code, count, found.pictures)
    for name, count in found.duplicates.counts().items():
        put("", "duplicates", name, count, found.pictures)
    for one in found.quality:
        for name, count in zip(one.names, one.counts, strict=True):
            put("quality", one.title, name, count, sum(one.counts))
    for said in found.features:
        for some in said.found:
            more = {"times": some.times, "mean_score": some.score}
            put(said.word, ABOUT[said.kind], some.name, some.pictures, said.answered, **more)
        for plot in filter(None, (said.scores, said.numbers)):
            for name, count in zip(plot.names, plot.counts, strict=True):
                rows.append({"feature": said.word, "about": plot.title, "name": name, "times": count})
    return pa.Table.from_pylist(rows, SCHEMA)


def write(results: Results, found: Summary, out: Path) -> None:
    """Write summary.html, and its table as Parquet and CSV, into a folder."""
    table = as_table(found)
    pq.write_table(table, out / "summary.parquet")
    pa.csv.write_csv(table, out / "summary.csv")
    shown = {one.word: _distinct(one.told) for one in found.features}
    answers = _answers(results, shown)

    def marks(word: str, one: Frequency) -> Marks:
        answer = answers[word, one.id]
        return boxes(answer, answer["width"], answer["height"])

    page.write(
        out / "summary.html",
        results=results,
        found=found,
        shown=shown,
        answers=answers,
        marks=marks,
        drawn=page.drawn,
        thumbnail=page.thumbnail,
        about=ABOUT,
        models=results.manifest.get("models", {}),
    )


def _distinct(found: Sequence[Frequency]) -> list[Frequency]:
    """Return those that are shown: each picture once."""
    return list({one.id: one for one in reversed(found[:SHOWN])}.values())[::-1][:PICTURES]


def _answers(results: Results, shown: dict[str, list[Frequency]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the answers to pictures that are shown, by the feature's word and the id."""
    answers = {}
    with results.connected() as rows:
        for word, some in shown.items():
            query = f"SELECT id, {quoted(word)}, width, height FROM rows WHERE list_contains(?, id)"  # noqa: S608
            for id, found, width, height in rows.execute(query, [[one.id for one in some]]).fetchall():
                answers[word, id] = {**found, "width": width, "height": height}
    return answers


def boxes(found: dict[str, Any], width: int, height: int) -> Marks:
    """Return the boxes of an answer, if it has any."""
    return Marks(
        [
            (one["label"], one["score"], (x1 / width, y1 / height, x2 / width, y2 / height))
            for one in found.get("objects", ())
            for x1, y1, x2, y2 in [one["box"]]
        ]
    )
