"""POST /insights: what real pictures show together, with bad ones among them."""

import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, SERVE, free_port

PEOPLE = [("images", PHOTOS[name].read_bytes()) for name in ("bus", "zidane", "hopper")]


@pytest.fixture(scope="module")
def told(server: str) -> Any:
    answer = httpx.post(f"{server}/insights", files=[*PEOPLE, ("images", b"broken")], timeout=120)
    assert answer.status_code == 200
    return answer.json()


def test_it_says_what_the_pictures_show_together(told: Any) -> None:
    insights = told["insights"]
    assert (insights["pictures"], insights["answered"]) == (4, 3)
    persons = next(one for one in insights["seen"] if (one["feature"], one["label"]) == ("detection", "person"))
    assert persons["pictures"] == 3
    assert (persons["any"], persons["all"]) == (True, True)
    assert [one["picture"] for one in persons["evidence"]] == [0, 1, 2]
    assert insights["people"]["counts"][3] is None
    assert insights["people"]["pictures"] == 3
    assert insights["main_subject"]["boxes"][2] is not None
    assert insights["main_subject"]["sunglasses"][2:] == [False, None]
    assert insights["main_subject"]["ever_without_sunglasses"] is True
    assert [one["picture"] for one in insights["failed"]] == [3]
    assert insights["failed"][0]["error"]["code"] == "unsupported_format"


def test_each_picture_has_its_results_and_the_broken_one_its_error(told: Any) -> None:
    *good, broken = told["results"]
    assert broken["error"]["code"] == "unsupported_format"
    for index, result in enumerate(good):
        assert {"size", "classification", "detection", "quality", "ms"} <= set(result)
        assert "captioning" not in result
        assert result["quality"] == told["insights"]["quality"][index]
        assert result["classification:efficientnet-lite0@head"]["labels"]


def test_copies_are_near_duplicates_and_a_tip(client: httpx.Client) -> None:
    answer = client.post("/insights", files=[PEOPLE[0], PEOPLE[2], PEOPLE[0]]).json()["insights"]
    assert answer["near_duplicates"] == [[0, 2]]
    assert [tip["pictures"] for tip in answer["tips"] if tip["id"] == "near-duplicates"] == [[0, 2]]


def test_what_scores_less_than_asked_does_not_count(client: httpx.Client) -> None:
    few, many = (
        client.post("/insights", files=PEOPLE, data={"min_score": least}).json()["insights"]["seen"]
        for least in ("0.6", "0.25")
    )
    assert all(evidence["score"] >= 0.6 for one in few for evidence in one["evidence"])
    assert len(few) < len(many)


def test_fewer_than_two_pictures_are_refused(client: httpx.Client) -> None:
    for answer in (
        client.post("/insights", files=PEOPLE[:1]),
        client.post("/insights", content=PEOPLE[0][1], headers={"content-type": "image/jpeg"}),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "too_few_images"
    assert client.post("/insights", files=17 * PEOPLE[:1]).json()["error"]["code"] == "too_many_images"
    assert client.post("/insights", files=PEOPLE, data={"top_k": "1"}).json()["error"]["code"] == "invalid_option"


def test_analyze_asks_about_a_head_too(client: httpx.Client) -> None:
    asked = {"features": ["detection", "classification@head"], "top_k": 3}
    [person] = client.post("/analyze", files=PEOPLE[2:], data=asked).json()["results"]
    assert len(person["classification@head"]["labels"]) == 3
    [cup] = client.post("/analyze", files={"images": PHOTOS["coffee"].read_bytes()}, data=asked).json()["results"]
    assert "classification@head" not in cup
    for features in (["classification@head"], ["detection", "detection@head"], ["detection", "classification@foot"]):
        answer = client.post("/analyze", files=PEOPLE[:1], data={"features": features})
        assert answer.json()["error"]["code"] == "invalid_option"


BAD_RULES = {
    "a condition nobody knows": ("rules:\n  - id: a\n    text: b\n    when:\n      - {about: mood}\n", "line 5"),
    "a model that is not served": (
        "rules:\n  - {id: a, text: b, when: [{about: seen, feature: 'classification:dogs', labels: [pug]}]}\n",
        "a needs classification:dogs, which is not served",
    ),
    "sunglasses without the model": (
        "sunglasses: {feature: 'classification:eyes@head', labels: [b], min_score: 0.5}\nrules: []\n",
        "sunglasses needs classification:eyes@head, which is not served",
    ),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_rules_that_cannot_be_followed_end_the_start(home: Path, tmp_path: Path, name: str) -> None:
    text, message = BAD_RULES[name]
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    environment = {**OFFLINE, "PATH": "/usr/bin:/bin", "BENTOML_HOME": str(home), "VISION_INSIGHTS_RULES": str(path)}
    command = [part.format(port=free_port()) for part in SERVE]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert message in run.stdout + run.stderr
    assert "VISION_INSIGHTS_RULES" in run.stdout + run.stderr
