"""What a page of one run and a page of two say: counts that were planted, the tables beside, and nothing to fetch."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest, fisher_exact, ttest_ind

from bulk import UserError, apart, compare, duplicates, rows, summary
from bulk.groups import Results
from testkit import results
from testkit.photographs import PHOTOS
from vision.insights.pictures import NEAR
from vision.tasks import TASKS

SCHEMA = rows.schema({word: task.result for word, task in TASKS.items()}, None)
EVIL = "<img src=x onerror=alert(1)>"


def row(id: str, labels: dict[str, float], objects: dict[str, float], caption: str, **others: Any) -> dict[str, Any]:
    said = {"caption": caption, "score": 0.4, "model": {}}
    made = {"sha256": f"digest of {id}", "bytes": 1000, "captioning": said, **others}
    return results.row(id, None, labels, objects, **made)


def some(town: str = "beach", score: float = 0.9) -> list[dict[str, Any]]:
    """Ten pictures of a beach with a dog and ten of a bus, a copy of the first, one nearly like it, and a failure."""
    made = [row(f"{at:02}", {town: score, "sea": 0.05}, {"dog": 0.8}, "A dog on the beach") for at in range(10)]
    made += [row(f"{at}", {"bus": 0.6}, {"bus": 0.7, "person": 0.3}, f"a {EVIL} bus") for at in range(10, 20)]
    made[0]["uri"] = str(PHOTOS["bus"])
    near = {**made[0]["quality"], "hash": f"{results.hash_of('00') ^ 0b111:016x}"}
    made.append({**made[0], "id": "copy"})
    made.append({**made[0], "id": "near", "sha256": "another", "quality": near})
    failed = results.failed("broken", None)
    return [*made, {**failed, "sha256": "broken", "captioning": None}]


def write(folder: Path, made: list[dict[str, Any]]) -> Results:
    return Results(results.write(folder, made, SCHEMA, shard=7))


def test_a_summary_counts_what_is_there(tmp_path: Path) -> None:
    scored = write(tmp_path / "results", some())
    found = summary.summary(scored)
    assert (found.pictures, found.failed, found.bytes) == (23, 1, 22_000)
    assert [(code, count) for code, count, _ in found.errors] == [("undecodable_image", 1)]
    told = {one.word: [(each.name, each.pictures, each.times) for each in one.told] for one in found.features}
    assert told["classification"] == [("beach", 12, 12), ("bus", 10, 10)]
    assert told["detection"] == [("dog", 12, 12), ("bus", 10, 10), ("person", 10, 10)]
    assert told["captioning"][:3] == [("beach", 12, 12), ("dog", 12, 12), ("1", 10, 10)]
    assert "a" in [one.name for one in {one.word: one for one in found.features}["captioning"].found]
    detection = next(one for one in found.features if one.word == "detection")
    assert detection.numbers
    assert detection.numbers.counts[:3] == [0, 12, 10]
    assert detection.scores.counts[16] == 12
    assert (found.duplicates.copies, found.duplicates.near) == (1, 2)
    assert [[one.id for one in members] for _, members in found.duplicates.copied] == [["00", "copy"]]
    assert [[one.id for one in members] for _, members in found.duplicates.alike] == [["00", "near"]]


def assert_safe(page: str) -> None:
    assert EVIL not in page
    assert "<script" not in page
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'(?:src|href)="([^"]*)', page))
    assert not re.findall(r"https?://|url\(|@import", page)


def test_the_summarys_page_and_tables_say_the_same(tmp_path: Path) -> None:
    made = some()
    made[1]["classification"]["labels"][0]["label"] = EVIL
    made[1]["id"] = made[2]["uri"] = EVIL
    scored = write(tmp_path / "results", made)
    found = summary.summary(scored)
    summary.write(scored, found, tmp_path)
    table = pq.read_table(tmp_path / "summary.parquet").to_pylist()
    assert csv.read_csv(tmp_path / "summary.csv").num_rows == len(table)
    [beach] = [one for one in table if (one["about"], one["name"]) == ("label", "beach")]
    assert (beach["pictures"], beach["share"]) == (11, 0.5)
    page = (tmp_path / "summary.html").read_text()
    assert_safe(page)
    assert "&lt;img src=x" in page
    assert "data:image/jpeg;base64," in page
    assert "50.0%" in page


def test_near_hashes_are_found_as_by_comparing_each_with_each() -> None:
    random = np.random.default_rng(27)
    hashes = random.integers(0, 2**63, 300, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(0, 64, (100, NEAR + 1), dtype=np.uint64)
    hashes[200:] = hashes[:100] ^ np.bitwise_xor.reduce(flips[:, : NEAR + 1], axis=1)
    hashes[200:250] = hashes[:50] ^ np.bitwise_xor.reduce(flips[:50, :NEAR], axis=1)
    group = duplicates.near_groups(hashes)
    near = [(int(one) ^ int(other)).bit_count() <= NEAR for one, other in zip(hashes[:100], hashes[200:], strict=True)]
    assert (group[:100] == group[200:]).tolist() == near
    assert 50 <= sum(near) < 100
    assert len(set(group.tolist())) == 300 - sum(near)


def test_a_comparison_finds_what_was_changed(tmp_path: Path) -> None:
    a = write(tmp_path / "a", some())
    changed = some("lake", 0.7)
    changed[10]["detection"]["objects"][0]["box"] = [60, 60, 99, 99]
    changed[11]["detection"]["objects"][0]["score"] = 0.5
    changed.append(row("new", {"bus": 0.9}, {}, "a bus"))
    b = write(tmp_path / "b", changed)
    found = compare.compare(a, b)
    assert isinstance(found, compare.Comparison)
    assert (found.pictures, found.a_only, found.b_only) == (22, 0, 1)
    classification, captioning, detection = (
        next(one for one in found.features if one.a == word) for word in ("classification", "captioning", "detection")
    )
    assert (classification.pictures, classification.differ, captioning.differ, detection.differ) == (21, 11, 0, 1)
    rates = {one.name: one for one in found.of("classification")}
    assert (rates["beach"].a, rates["beach"].b, rates["beach"].only_a) == (11, 0, 11)
    assert rates["beach"].difference == pytest.approx(-11 / 21)
    assert rates["beach"].low < -11 / 21 < rates["beach"].high < 0
    assert rates["beach"].p == pytest.approx(binomtest(11, 11).pvalue)
    assert rates["beach"].p < rates["beach"].q < 0.05
    assert rates["bus"].low < 0 < rates["bus"].high
    assert (rates["bus"].p, rates["bus"].difference) == (1, 0)
    [worst] = detection.worst
    assert worst.id == "10"
    assert worst.how_far == pytest.approx(1.4)
    shift = detection.shift()
    assert shift
    assert shift.pictures == 30
    assert shift.mean == pytest.approx(-0.2 / 30)
    assert [one.how_far for one in classification.worst] == [pytest.approx(0.8)] * 11
    assert {one.name: (one.a, one.b) for one in found.of("errors")} == {"undecodable_image": (1, 1)}

    compare.write(a, b, found, tmp_path)
    table = pq.read_table(tmp_path / "compare.parquet").to_pylist()
    assert csv.read_csv(tmp_path / "compare.csv").num_rows == len(table)
    assert [one["id"] for one in pq.read_table(tmp_path / "disagreements.parquet").to_pylist()][-1] == "10"
    page = (tmp_path / "compare.html").read_text()
    assert_safe(page)
    assert "lake 70%" in page
    assert "-52.4" in page


def test_the_worst_disagreement_comes_first(tmp_path: Path) -> None:
    def made(scores: dict[str, tuple[str, float]]) -> list[dict[str, Any]]:
        return [row(id, {label: score}, {}, "") for id, (label, score) in scores.items()]

    a = write(tmp_path / "a", made({"mild": ("cat", 0.3), "bad": ("cat", 0.9), "same": ("cat", 0.9)}))
    b = write(tmp_path / "b", made({"mild": ("dog", 0.2), "bad": ("dog", 0.8), "same": ("cat", 0.5)}))
    found = compare.compare(a, b)
    assert isinstance(found, compare.Comparison)
    [classification, *_] = found.features
    assert [one.id for one in classification.worst] == ["bad", "mild"]


def test_two_models_of_a_kind_are_compared(tmp_path: Path) -> None:
    dogs = [{**one, "classification:dogs": one["classification"]} for one in some("pug")]
    kinds = {"classification:dogs": TASKS["classification"].result}
    b = Results(results.write(tmp_path / "b", dogs, rows.schema(kinds, None)))
    found = compare.compare(write(tmp_path / "a", some()), b)
    assert isinstance(found, compare.Comparison)
    [only] = found.features
    assert (only.name, only.differ) == ("classification beside classification:dogs", 11)


def test_weeks_without_a_common_picture_are_compared_by_their_rates(tmp_path: Path) -> None:
    a = write(tmp_path / "a", some())
    week = [{**one, "sha256": f"other {one['id']}"} for one in some("lake", 0.7)]
    week[0]["detection"]["objects"] *= 2
    b = write(tmp_path / "b", week)
    found = compare.compare(a, b)
    assert isinstance(found, apart.Apart)
    assert found.pictures == (23, 23)
    rates = {(one.feature, one.name): one for one in found.rates}
    beach = rates["classification", "beach"]
    assert (beach.a, beach.b, beach.pictures_a, beach.difference) == (12, 0, 22, -12 / 22)
    assert beach.low < -12 / 22 < beach.high < 0
    assert beach.p == pytest.approx(fisher_exact([[12, 10], [0, 22]]).pvalue)
    assert beach.p < beach.q < 0.05
    dog = rates["detection", "dog"]
    assert (dog.a, dog.b, dog.p) == (12, 12, 1)
    assert dog.low < 0 < dog.high
    shift = {one.name: one.shift for one in found.features}["classification"]
    scores_a, scores_b = [0.9] * 12 + [0.6] * 10, [0.7] * 12 + [0.6] * 10
    theirs = ttest_ind(scores_b, scores_a, equal_var=False).confidence_interval()
    assert shift == pytest.approx((-0.2 * 12 / 22, theirs.low, theirs.high))
    assert rates["errors", "undecodable_image"].difference == 0

    compare.write_apart(a, b, found, tmp_path)
    table = pq.read_table(tmp_path / "compare.parquet").to_pylist()
    assert csv.read_csv(tmp_path / "compare.csv").num_rows == len(table) == len(found.rates) + 3
    page = (tmp_path / "compare.html").read_text()
    assert_safe(page)
    assert "-54.5" in page


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    a = write(tmp_path / "a", some())
    others = write(tmp_path / "b", [{**one, "sha256": f"other {one['id']}"} for one in some()])
    nothing = Results(results.write(tmp_path / "c", some(), rows.schema({}, None)))
    with pytest.raises(UserError, match="no feature: there is nothing to compare"):
        compare.compare(a, nothing)
    assert summary.summary(nothing).features == []
    a.parts[1].write_bytes(a.parts[1].read_bytes()[:-50])
    with pytest.raises(UserError, match="is damaged"):
        summary.summary(a)
    with pytest.raises(UserError, match="is damaged"):
        compare.compare(a, others)
