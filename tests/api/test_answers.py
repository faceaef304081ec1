"""Known photographs get their known answers, in one shape, however they are sent."""

import base64
from itertools import pairwise
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest

from testkit.photographs import PHOTOS, assert_same


def post(client: httpx.Client, endpoint: str, *names: str, **options: Any) -> list[dict[str, Any]]:
    files = [("images", PHOTOS[name].read_bytes()) for name in names]
    response = client.post(endpoint, files=files, data=options)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


@pytest.mark.parametrize(
    ("photo", "label", "score"),
    [
        ("coffee", "espresso", 0.9),
        ("camera", "tripod", 0.9),
        ("cat", "tiger cat", 0.3),
        ("motorcycle", "moped", 0.4),
        ("bus", "minibus", 0.5),
        ("rocket", "missile", 0.2),
    ],
)
def test_a_known_photograph_has_its_label(client: httpx.Client, photo: str, label: str, score: float) -> None:
    [result] = post(client, "/classify", photo)
    best = result["labels"][0]
    assert best["label"] == label
    assert best["score"] >= score
    assert [item["score"] for item in result["labels"]] == sorted((i["score"] for i in result["labels"]), reverse=True)
    assert len(result["labels"]) == 5


def test_a_bus_and_persons_are_found_on_bus(client: httpx.Client) -> None:
    [result] = post(client, "/detect", "bus")
    labels = [found["label"] for found in result["objects"]]
    assert labels.count("bus") == 1
    assert labels.count("person") >= 3


def test_persons_and_ties_are_found_on_zidane_with_boxes_in_its_pixels(client: httpx.Client) -> None:
    [result] = post(client, "/detect", "zidane")
    assert result["size"] == {"width": 1280, "height": 720}
    labels = [found["label"] for found in result["objects"]]
    assert labels.count("person") >= 2
    assert labels.count("tie") >= 1
    for found in result["objects"]:
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 < x2 <= 1280
        assert 0 <= y1 < y2 <= 720
        assert found["box_normalized"] == pytest.approx([x1 / 1280, y1 / 720, x2 / 1280, y2 / 720], abs=1e-4)
    left_man, right_man = sorted(o["box"][0] for o in result["objects"][:2])
    assert left_man == pytest.approx(133, abs=40)
    assert right_man == pytest.approx(757, abs=40)


def test_a_caption_is_a_sentence_about_the_picture(client: httpx.Client) -> None:
    cat, bus = post(client, "/caption", "cat", "bus")
    for result in (cat, bus):
        words = result["caption"].split()
        assert 4 <= len(words) <= 30
        assert len(set(pairwise(words))) == len(words) - 1, "a bigram stands twice"
        assert 0 < result["score"] < 1
    assert cat["caption"] != bus["caption"]


def test_caption_options_bound_the_sentence(client: httpx.Client) -> None:
    [short] = post(client, "/caption", "bus", max_new_tokens=3, num_beams=1)
    assert len(short["caption"].split()) <= 3
    assert 0 < short["score"] < 1


def test_classify_options(client: httpx.Client) -> None:
    [result] = post(client, "/classify", "cat", top_k=1000, min_score=0.1)
    assert 1 <= len(result["labels"]) <= 5
    assert all(item["score"] >= 0.1 for item in result["labels"])


def test_detect_options(client: httpx.Client) -> None:
    [result] = post(client, "/detect", "zidane", min_score=0.3, max_detections=2, labels=["tie"])
    assert [found["label"] for found in result["objects"]] == ["tie", "tie"]
    assert all(found["score"] >= 0.3 for found in result["objects"])


def test_analyze_equals_the_three_endpoints(client: httpx.Client) -> None:
    [together] = post(client, "/analyze", "bus", top_k=3)
    [labels] = post(client, "/classify", "bus", top_k=3)
    [caption] = post(client, "/caption", "bus")
    [objects] = post(client, "/detect", "bus")
    assert together["classification"]["labels"] == labels["labels"]
    assert together["captioning"]["caption"] == caption["caption"]
    assert together["captioning"]["score"] == pytest.approx(caption["score"], abs=1e-3)
    assert together["detection"]["objects"] == objects["objects"]
    assert set(together["ms"]) == {"decode", "classification", "captioning", "detection", "total"}


def test_analyze_runs_only_the_features_asked_for(client: httpx.Client) -> None:
    [result] = post(client, "/analyze", "bus", features=["detection", "captioning"])
    assert "classification" not in result
    assert result["detection"]["objects"]
    assert result["captioning"]["caption"]


def test_min_score_of_analyze_holds_for_labels_and_objects(client: httpx.Client) -> None:
    [result] = post(client, "/analyze", "bus", features=["classification", "detection"], min_score=0.6)
    assert [item["label"] for item in result["classification"]["labels"]] == ["minibus"]
    assert {found["label"] for found in result["detection"]["objects"]} == {"bus", "person"}


def test_one_feature_may_fail_alone(client: httpx.Client) -> None:
    [result] = post(client, "/analyze", "bus", labels=["persn"])
    assert result["detection"]["error"]["code"] == "invalid_option"
    assert "person" in result["detection"]["error"]["message"]
    assert result["classification"]["labels"]
    assert result["captioning"]["caption"]


def test_results_stand_in_the_pictures_order_with_models_and_milliseconds(client: httpx.Client) -> None:
    names = ["bus", "cat", "coffee", "zidane"] * 4
    results = post(client, "/classify", *names, top_k=1)
    expected = {"bus": "minibus", "cat": "tiger cat", "coffee": "espresso"}
    for name, result in zip(names, results, strict=True):
        if name in expected:
            assert result["labels"][0]["label"] == expected[name]
        assert result["model"]["name"] == "efficientnet-lite0"
        assert result["model"]["version"]
        assert result["model"]["source"]
        assert 0 < result["ms"]["decode"] <= result["ms"]["total"]
        assert 0 < result["ms"]["classification"] <= result["ms"]["total"]


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        ("/classify", {"top_k": 2, "min_score": 0.01}),
        ("/caption", {"max_new_tokens": 10, "num_beams": 2}),
        ("/detect", {"min_score": 0.3, "max_detections": 4, "labels": ["person", "bus"]}),
        ("/analyze", {"features": ["classification", "detection"], "top_k": 1, "labels": ["person"]}),
    ],
)
def test_json_and_multipart_answer_alike(client: httpx.Client, endpoint: str, options: dict[str, Any]) -> None:
    sent_as_files = post(client, endpoint, "bus", "cat", **options)
    images = [base64.b64encode(PHOTOS[name].read_bytes()).decode() for name in ("bus", "cat")]
    response = client.post(endpoint, json={"images": images, **options})
    assert response.status_code == 200, response.text
    for as_file, as_json in zip(sent_as_files, response.json()["results"], strict=True):
        assert_same(as_json, as_file, options.get("min_score", 0.25))


def test_bentomls_own_client_calls_every_endpoint(server: str, tmp_path: Path) -> None:
    with bentoml.SyncHTTPClient(server) as client:
        picture = PHOTOS["bus"]
        assert client.classify(images=[picture], top_k=2)["results"][0]["labels"][0]["label"] == "minibus"
        assert client.caption(images=[picture], num_beams=1)["results"][0]["caption"]
        found = client.detect(images=[picture, PHOTOS["zidane"]], labels=["person"], min_score=0.4)["results"]
        assert {o["label"] for result in found for o in result["objects"]} == {"person"}
        [result] = client.analyze(images=[picture], features=["classification"], min_score=None)["results"]
        assert set(result) == {"size", "classification", "ms"}
        text = tmp_path / "text.jpg"
        text.write_text("no picture")
        good, bad = client.classify(images=[picture, text])["results"]
        assert good["labels"]
        assert bad["error"]["code"] == "unsupported_format"


def test_models_tells_what_is_served(client: httpx.Client) -> None:
    models = {model["task"]: model for model in client.get("/models").json()["models"]}
    assert set(models) == {"classification", "captioning", "detection"}
    assert models["classification"]["labels"] == 1000
    assert models["detection"]["labels"] == 80
    assert models["detection"]["input_size"] == [416, 416]
    for model in models.values():
        assert all(model[field] for field in ("name", "version", "source", "licence", "sha256", "metrics"))
    [result] = post(client, "/detect", "bus")
    assert result["model"]["version"] == models["detection"]["version"]
