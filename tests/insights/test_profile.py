"""What pictures show together, computed by hand from rows: shares, evidence, people, duplicates, tips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vision.core import subject
from vision.core.errors import Code
from vision.core.schemas import ErrorBody, Quality
from vision.insights import rules
from vision.insights.pictures import Picture, near_duplicates
from vision.insights.profile import Insights, insights

HEAD = "classification:eyes@head"
SUNGLASSES = f"sunglasses: {{feature: '{HEAD}', labels: [sunglasses, sunglass], min_score: 0.2}}\n"


def picture(
    labels: Mapping[str, float] | None = None,
    objects: Sequence[tuple[str, float, tuple[float, ...]]] | None = None,
    head: Mapping[str, float] | None = None,
    **quality: Any,
) -> Picture:
    results: dict[str, Any] = {"captioning": {"caption": "a secret"}}
    if labels is not None:
        results["classification"] = {"labels": [{"label": name, "score": score} for name, score in labels.items()]}
    if objects is not None:
        results["detection"] = {"objects": [{"label": a, "score": b, "box": c} for a, b, c in objects]}
    if head is not None:
        results[HEAD] = {"labels": [{"label": name, "score": score} for name, score in head.items()]}
    measured = {"brightness": 0.5, "contrast": 0.2, "sharpness": 500.0, "hash": "0" * 16, **quality}
    return Picture.of((100, 100), results, Quality(**measured))


def person(score: float, side: float, left: float = 0) -> tuple[str, float, tuple[float, ...]]:
    return "person", score, (left, 0, left + side, side)


BROKEN = Picture.failed(ErrorBody(code=Code.UNDECODABLE_IMAGE, message="broken", retryable=False))


def written(tmp_path: Path, text: str) -> rules.Rules:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return rules.load(path)


def rule(*conditions: str, rest: str = "") -> str:
    listed = "\n".join(f"      - {one}" for one in conditions)
    return f"rules:\n  - id: one\n    text: a tip\n{rest}    when:\n{listed}\n"


def seen(pictures: Sequence[Picture], text: str, tmp_path: Path) -> Insights:
    return insights(pictures, written(tmp_path, text))


def test_labels_and_objects_are_counted_with_their_best_evidence(tmp_path: Path) -> None:
    pictures = [
        picture({"beach": 0.9, "sea": 0.2}, [("dog", 0.8, (1, 2, 3, 4)), ("dog", 0.4, (5, 6, 7, 8))]),
        BROKEN,
        picture({"beach": 0.4}, [person(0.5, 10)]),
    ]
    found = insights(pictures, rules.Rules(rules=[]))
    assert (found.pictures, found.answered) == (3, 2)
    assert [(one.feature, one.label, one.pictures, one.share, one.all) for one in found.seen] == [
        ("classification", "beach", 2, 1.0, True),
        ("detection", "dog", 1, 0.5, False),
        ("detection", "person", 1, 0.5, False),
    ]
    [dog] = found.seen[1].evidence
    assert (dog.picture, dog.score, dog.box) == (0, 0.8, (1, 2, 3, 4))
    assert [(one.picture, one.error.code) for one in found.failed] == [(1, "undecodable_image")]
    assert "secret" not in found.model_dump_json()


def test_people_are_counted_and_the_main_subject_is_the_largest(tmp_path: Path) -> None:
    pictures = [picture(objects=[person(0.9, 10), person(0.5, 40, 20)]), picture(objects=[]), picture(), BROKEN]
    found = insights(pictures, rules.Rules(rules=[]))
    assert found.people.counts == [2, 0, None, None]
    assert (found.people.pictures, found.people.most) == (1, 2)
    assert found.main_subject.boxes == [(20, 0, 60, 40), None, None, None]
    assert found.main_subject.ever_without_sunglasses is None


@pytest.mark.parametrize(
    ("heads", "ever", "tip"),
    [
        ([{"sunglasses": 0.15, "sunglass": 0.1}, {"sunglass": 0.6}], False, True),
        ([{"sunglasses": 0.15, "sunglass": 0.1}, {"wig": 0.6}], True, False),
        ([{"sunglass": 0.6}, None], False, True),
        ([None, None], None, False),
    ],
)
def test_sunglasses_are_told_of_pictures_with_a_main_subject(
    heads: list[dict[str, float] | None], ever: bool | None, tip: bool, tmp_path: Path
) -> None:
    pictures = [picture({}, [person(0.9, 50)] if head is not None else [], head) for head in heads]
    found = seen(pictures, SUNGLASSES + rule("{about: sunglasses, share: {at_least: 1}}"), tmp_path)
    assert found.main_subject.ever_without_sunglasses is ever
    assert [one.id for one in found.tips] == (["one"] if tip else [])
    assert not any(one.feature == HEAD for one in found.seen)


@pytest.mark.parametrize(("size", "worn"), [((100, 100), False), ((2560, 100), None)])
def test_a_head_that_is_too_small_says_nothing_of_sunglasses(
    size: tuple[int, int], worn: bool | None, tmp_path: Path
) -> None:
    """A head of 30 pixels is one of 15 where the picture is made half as large before anybody looks."""
    large = picture({}, [person(0.9, 50)], {"wig": 0.6})._replace(size=size)
    small = picture({}, [person(0.9, 20)], {"sunglass": 0.6})
    text = SUNGLASSES.replace("0.2}", "0.2, min_head: 20}") + rule("{about: sunglasses}")
    found = seen([large, small], text, tmp_path)
    assert found.main_subject.sunglasses == [worn, None]
    assert found.main_subject.ever_without_sunglasses == (None if worn is None else True)
    assert not found.tips


CONDITIONS = {
    "any picture with a dog": ("{about: seen, feature: detection, labels: [dog, cat]}", [1]),
    "no picture with a cat": ("{about: seen, feature: detection, labels: [cat], pictures: {at_most: 0}}", []),
    "a label that scores too little": ("{about: seen, feature: classification, labels: [sea], min_score: 0.3}", None),
    "a label that scores enough": ("{about: seen, feature: classification, labels: [sea], min_score: 0.1}", [0]),
    "a model that was not asked": ("{about: seen, feature: 'classification:dogs', labels: [sea]}", None),
    "one person": ("{about: people, count: {at_least: 1, at_most: 1}, share: {at_least: 0.5}}", [1, 2]),
    "a small subject": ("{about: subject, area: {at_most: 0.05}, share: {at_least: 0.5}}", [1]),
    "a dark picture": ("{about: quality, measure: brightness, value: {at_most: 0.2}}", [2]),
    "nearly the same": ("{about: near_duplicates, pictures: {at_least: 2}}", [0, 1]),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_each_condition_judges_pictures(name: str, tmp_path: Path) -> None:
    condition, met = CONDITIONS[name]
    pictures = [
        picture({"sea": 0.2}, [], hash="f" * 16),
        picture({}, [("dog", 0.9, (0, 0, 9, 9)), person(0.9, 10)], hash="f" * 15 + "0"),
        picture({}, [person(0.9, 50)], brightness=0.1),
        BROKEN,
    ]
    tips = seen(pictures, rule(condition), tmp_path).tips
    assert [tip.pictures for tip in tips] == ([] if met is None else [met])


def test_a_rule_needs_all_conditions_enough_pictures_and_to_be_enabled(tmp_path: Path) -> None:
    both = ("{about: near_duplicates}", "{about: quality, measure: brightness, value: {at_most: 0.2}}")
    alike = [picture(), picture(), BROKEN]
    assert seen(alike, rule(*both[:1]), tmp_path).tips
    assert not seen(alike, rule(*both), tmp_path).tips
    assert not seen(alike, rule(*both[:1], rest="    min_pictures: 3\n"), tmp_path).tips
    assert not seen(alike, rule(*both[:1], rest="    enabled: false\n"), tmp_path).tips


def test_near_duplicates_are_grouped_through_one_another() -> None:
    hashes = ["00" * 8, "ff" * 8, "00" * 7 + "ff", "ff" * 7 + "00", "00" * 6 + "ffff"]
    assert near_duplicates([picture(hash=one) for one in hashes]) == [[0, 2, 4], [1, 3]]


WRONG = {
    "empty": ("", "line 1: the file is empty"),
    "no YAML": ("rules:\n  - [\n", "line 3"),
    "an unknown condition": (rule("{about: mood}"), "line 5: rules.0.when.0: Input tag 'mood'"),
    "an unknown word": (rule("{about: near_duplicates}", rest="    whn: 3\n"), "line 4: rules.0.whn: Extra inputs"),
    "a word for a number": (rule("{about: people, count: {at_least: no}}"), "line 5: rules.0.when.0.people.count"),
    "a range that says nothing": (rule("{about: people, count: {}}"), "at_least, at_most, or both"),
    "an object that scores too little": (
        rule("{about: seen, feature: detection, labels: [dog], min_score: 0.1}"),
        "at least 0.25",
    ),
    "sunglasses that nobody explains": (rule("{about: sunglasses}"), "nothing says how they are recognised"),
    "two rules of a name": (rule("{about: near_duplicates}") + rule("{about: near_duplicates}")[7:], "two rules"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, message = WRONG[name]
    with pytest.raises(ValueError, match=r"rules\.yaml, line \d") as refused:
        written(tmp_path, text)
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        rules.load(tmp_path / "none.yaml")


def test_the_shipped_rules_speak_of_pictures_only() -> None:
    shipped = rules.load(rules.SHIPPED)
    assert {"detection", "quality", "classification:efficientnet-lite0@head"} == set(shipped.features)
    text = rules.SHIPPED.read_text().lower()
    assert not any(f" {word}" in text for word in "gender man woman age old young ethnic race skin attractive".split())
    without = shipped.without_sunglasses()
    assert set(without.features) == {"detection", "quality"}
    assert len(list(without)) == len(list(shipped)) - 1


@pytest.mark.parametrize(
    ("box", "head"),
    [
        ((10, 20, 30, 120), (8, 18, 32, 42)),  # standing: as wide as the box
        ((0, 0, 100, 100), (20, 0, 80, 55)),  # a portrait: half of its height
        ((99, 99, 100, 100), (99, 99, 100, 100)),
        ((99.9, 99.9, 100, 100), (99, 99, 100, 100)),
    ],
)
def test_a_head_is_a_square_at_the_top(box: subject.Box, head: tuple[int, int, int, int]) -> None:
    assert subject.head(box, (100, 100)) == head
