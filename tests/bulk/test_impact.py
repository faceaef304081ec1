"""What goes with an outcome: what is planted is found, nothing where there is nothing; the numbers are statsmodels'."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from scipy.stats import rankdata

from benchmarks.planted import Draws, draw
from bulk import UserError, impact, impact_report
from bulk.groups import Results
from bulk.signals import Signal, table
from bulk.statistics import compare
from testkit import results
from testkit.photographs import PHOTOS
from vision.insights import rules

RULES = rules.load(rules.SHIPPED)
GROUPS = 300


def rows() -> list[dict[str, Any]]:
    """Profiles of three pictures; a third of them show a dog, which often comes with a ball."""
    made = random.Random(28)
    found = []
    for group in range(GROUPS):
        dogs = group % 3 == 0
        for index in range(3):
            objects = {"person": 0.9, **{one: 0.7 for one in ("car", "cup") if made.random() < 0.3}}
            if dogs and index == 0:
                objects |= {"dog": 0.8, "sports ball": 0.6}
            labels = {f"label {made.randrange(20)}": 0.9}
            quality = {
                **results.row("", "")["quality"],
                "brightness": made.random(),
                "hash": f"{made.getrandbits(64):016x}",
            }
            uri = str(PHOTOS["bus"]) if index == 0 else f"s3://bucket/{group}-{index}.jpg"
            found.append(results.row(f"{group}-{index}", f"g{group}", labels, objects, quality=quality, uri=uri))
    return found


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(results.write(tmp_path_factory.mktemp("impact") / "results", rows()), "group")


def outcomes(folder: Path, text: str) -> Path:
    path = folder / "likes.csv"
    path.write_text(text)
    return path


def likes(folder: Path, effect: float) -> Path:
    noise = np.random.default_rng(28)
    lines = [
        f"g{group},{100 + 10 * (effect * (group % 3 == 0) + noise.normal()):.3f},{group % 7}" for group in range(GROUPS)
    ]
    return outcomes(folder, "group,likes,age_days\n" + "\n".join([*lines, "gone,5,1", "g0x,,3"]) + "\n")


def test_a_planted_effect_leads_with_its_size_and_its_reach(scored: Results, tmp_path: Path) -> None:
    told = impact.read_outcomes(likes(tmp_path, 1), "group", "likes", ["age_days"])
    found = impact.impact(scored, RULES, told)
    first = found.findings[0]
    assert first.signal in [Signal("detection", label, "any") for label in ("dog", "sports ball")]
    assert first.leads
    assert first.low < 10 < first.high
    assert (first.groups, first.reach) == (100, 200)
    assert found.findings[1].cluster == first.cluster
    assert not found.findings[1].leads
    assert (found.groups, found.without_outcome, found.without_pictures, found.left_out) == (300, 0, 1, 1)
    for words in (
        "higher than in other groups with as many pictures, the same age_days",
        "100 of 300",
        "by lot",
        "go together",
    ):
        assert words in first.sentence
    assert not any(one.signal.label == "person" for one in found.findings)  # in every picture: it tells nothing apart
    last = found.findings[-1]
    assert not last.survives
    assert "conclude nothing" in last.sentence


def test_the_report_and_its_tables_say_the_same(scored: Results, tmp_path: Path) -> None:
    found = impact.impact(scored, RULES, impact.read_outcomes(likes(tmp_path, 1), "group", "likes", []))
    impact.write(found, tmp_path)
    impact_report.write(found, tmp_path)
    columns = pq.read_table(tmp_path / "impact.parquet").to_pydict()
    assert csv.read_csv(tmp_path / "impact.csv").to_pydict()["signal"] == columns["signal"]
    assert columns["signal"] == [one.signal.name for one in found.findings]
    page = (tmp_path / "impact.html").read_text()
    assert columns["sentence"][0].replace("'", "&#39;") in page
    assert "data:image/jpeg;base64," in page
    assert "http" not in page
    assert "<script" not in page


def test_labels_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    some = [results.row(str(one), f"g{one}", {evil: 0.9} if one % 2 else {}) for one in range(80)]
    scored = Results(results.write(tmp_path / "results", some), "group")
    text = "group,likes\n" + "\n".join(f"g{one},{one % 2 + one / 1000}" for one in range(80))
    found = impact.impact(scored, RULES, impact.read_outcomes(outcomes(tmp_path, text), "group", "likes", []))
    impact_report.write(found, tmp_path)
    page = (tmp_path / "impact.html").read_text()
    assert evil not in page
    assert "&lt;img src=x" in page


def test_coefficients_and_p_values_are_those_of_statsmodels() -> None:
    random = np.random.default_rng(0)
    signals = (random.random((200, 4)) < 0.3).astype(np.float32)
    others = random.normal(size=(200, 2))
    outcome = 1000 + signals[:, 0] + others @ [1, 2] + random.normal(size=200)
    found = compare(signals, outcome, others, draws=400)
    for index, signal in enumerate(signals.T):
        model = sm.OLS(outcome, np.column_stack([signal, np.ones(200), others])).fit()
        ranks = np.column_stack([rankdata(signal), np.ones(200), rankdata(others, axis=0)])
        assert found.effect[index] == pytest.approx(model.params[0])
        assert found.p[index] == pytest.approx(sm.OLS(rankdata(outcome), ranks).fit().pvalues[0])
        assert [found.low[index], found.high[index]] == pytest.approx(model.conf_int()[0], abs=0.06)


@pytest.mark.served
def test_a_small_proof_finds_what_is_planted_and_nothing_else(scored: Results) -> None:
    """`make planted` draws 200 times, at profiles of real photographs."""
    everybody = {f"g{group}": (0.0,) for group in range(GROUPS)}
    collected, at, _, _ = impact.collect(scored, RULES, impact.Outcomes("likes", [], everybody, 0))
    compared = table(collected, at, impact.SUPPORT)
    pictures = np.frombuffer(collected.pictures)[:, None]
    planted = Signal("detection", "dog", "any")
    found: Draws = draw(compared, pictures, planted, effect=0.6, times=12)
    assert found.found >= 11
    assert found.held >= 10
    assert draw(compared, pictures, planted, effect=0, times=12).found <= 2


WRONG = {
    "no such column": ("group,matches\ng1,2\n", "has no column 'likes'; it has group, matches"),
    "words": ("group,likes\ng1,many\n", "likes is not numeric"),
    "constant": ("group,likes\ng1,2\ng2,2\n", "likes is constant"),
    "a group twice": ("group,likes\ng1,2\ng1,3\n", "'g1' stands there twice"),
    "empty": ("", "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_outcomes_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    text, message = WRONG[name]
    with pytest.raises(UserError) as refused:
        impact.read_outcomes(outcomes(tmp_path, text), "group", "likes", [])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value).strip()


def test_too_few_groups_are_refused_and_those_without_outcome_told(scored: Results, tmp_path: Path) -> None:
    told = impact.read_outcomes(outcomes(tmp_path, "group,likes\ng1,2\ng2,3\nnobody,9\n"), "group", "likes", [])
    with pytest.raises(UserError, match=r"2 groups .* at least 40 .*298 groups of pictures have none"):
        impact.impact(scored, RULES, told)
