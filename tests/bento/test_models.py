"""Many models a task: each is asked by its name, has batches of its own, and does not wait for its neighbour."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from testkit.copies import save_copy
from testkit.photographs import PHOTOS, encoded
from testkit.servers import OFFLINE, ROOT, SERVE, Served, another, free_port, frozen, metric, served, until


class Several:
    """A service of the starters beside a classifier `dogs` in two versions."""

    def __init__(self, running: Served, tags: list[str]) -> None:
        self.running, self.tags = running, tags

    def ask(self, endpoint: str, **options: Any) -> Any:
        answer = httpx.post(
            f"{self.running.url}{endpoint}", files={"images": PHOTOS["bus"].read_bytes()}, data=options, timeout=60
        )
        return answer.json()["results"][0] if answer.status_code == 200 else answer.json()["error"]


@pytest.fixture(scope="module")
def several(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    place = another(home, tmp_path_factory)
    older, newer = save_copy(place, "dogs", "old "), save_copy(place, "dogs", "new ")
    with served(place, VISION_CLASSIFICATION_MODEL=f"efficientnet-lite0, {newer},{older}") as running:
        [lite0] = [folder.name for folder in (place / "models" / "efficientnet-lite0").glob("*/")]
        yield Several(running, [f"efficientnet-lite0:{lite0}", newer, older])


def best(result: Any) -> str:
    label: str = result["labels"][0]["label"]
    return label


def test_a_model_is_asked_by_its_name(several: Several) -> None:
    _, newer, older = several.tags
    assert best(several.ask("/classify")) == "minibus"
    assert best(several.ask("/classify", model="efficientnet-lite0")) == "minibus"
    assert best(several.ask("/classify", model="dogs")) == "new minibus"  # the first of that name
    assert best(several.ask("/classify", model=older)) == "old minibus"
    assert f"dogs:{several.ask('/classify', model=newer)['model']['version']}" == newer


@pytest.mark.parametrize("name", ["cats", "dogs:", "dogs:0", "nanodet-g"])
def test_an_unknown_model_is_told_what_there_is(several: Several, name: str) -> None:
    error = several.ask("/classify", model=name)
    assert error["code"] == "invalid_option"
    assert all(tag in error["message"] for tag in several.tags)


def test_features_name_models_and_answers_stand_under_their_words(several: Several) -> None:
    _, _, older = several.tags
    words = [
        "classification",
        "classification:dogs",
        f"classification:{older}",
        "detection:nanodet-g",
        "classification",
    ]
    result = several.ask("/analyze", features=words, top_k="1")
    assert [best(result[word]) for word in words[:3]] == ["minibus", "new minibus", "old minibus"]
    assert result["detection:nanodet-g"]["objects"]
    assert set(result) == {"size", "ms", *words}
    assert set(result["ms"]) == {"decode", "total", *words}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classification", "classification:efficientnet-lite0"], "mean the same model"),
        (["classification:"], "known are classification, classification:MODEL"),
        (["classification:cats"], "classification has no 'cats'"),
        (["smelling"], "known are classification"),
    ],
)
def test_a_wrong_feature_is_told_what_is_known(several: Several, words: list[str], message: str) -> None:
    error = several.ask("/analyze", features=words)
    assert error["code"] == "invalid_option"
    assert message in error["message"]


def test_all_are_listed_with_their_memory_and_their_state(several: Several) -> None:
    listed = httpx.get(f"{several.running.url}/models").json()["models"]
    classifiers = [model for model in listed if model["task"] == "classification"]
    assert [f"{model['name']}:{model['version']}" for model in classifiers] == several.tags
    assert [model["default"] for model in classifiers] == [True, False, False]
    assert all(model["memory_bytes"] > 1_000_000 for model in listed)
    ready = httpx.get(f"{several.running.url}/readyz").json()
    assert ready["models"].items() >= dict.fromkeys(several.tags, "ready").items()
    assert set(several.running.workers()) == {"vision", "classification", "captioning", "detection"}


def test_each_has_batches_and_metrics_of_its_own(several: Several) -> None:
    def pictures() -> list[float]:
        return [metric(several.running, "vision_batch_images_sum", model=tag) for tag in several.tags]

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=several.running.url, timeout=60) as client:
            photo = PHOTOS["bus"].read_bytes()
            asked = [("efficientnet-lite0", 20), ("dogs", 30)]
            requests = [
                client.post("/classify", files={"images": photo}, data={"model": name})
                for name, count in asked
                for _ in range(count)
            ]
            answers = [answer.json()["results"][0] for answer in await asyncio.gather(*requests)]
        assert [best(answer) for answer in answers] == ["minibus"] * 20 + ["new minibus"] * 30

    before = pictures()
    asyncio.run(ask())
    assert [after - count for after, count in zip(pictures(), before, strict=True)] == [20, 30, 0]


def test_a_lone_picture_does_not_wait_for_its_neighbours_backlog(several: Several) -> None:
    """200 pictures wait for one model; the other's lone picture is answered before half of them."""
    lite0, newer, _ = several.tags
    photo = encoded_small()

    def waiting(tag: str) -> float:
        return metric(several.running, "vision_queue_images", model=tag)

    def answered(tag: str) -> float:
        return metric(several.running, "vision_images_total", model=tag, outcome="ok")

    async def run() -> None:
        before = answered(newer)
        runner = several.running.workers()["classification"]
        async with httpx.AsyncClient(base_url=several.running.url, timeout=120) as client:
            with frozen(runner):
                many = [
                    asyncio.ensure_future(
                        client.post("/classify", files=[("images", photo)] * 10, data={"model": "dogs"})
                    )
                    for _ in range(20)
                ]
                await until(lambda: waiting(newer) == 200)
                lone = asyncio.ensure_future(client.post("/classify", files={"images": photo}))
                await until(lambda: waiting(lite0) == 1)
            assert (await lone).status_code == 200
            done = sum(request.done() for request in many)
            assert done < 10
            await asyncio.gather(*many)
        assert answered(newer) - before == 200

    asyncio.run(run())


def encoded_small() -> bytes:
    return encoded(Image.open(PHOTOS["bus"]).resize((224, 224)), "JPEG")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "efficientnet-lite0,efficientnet-lite0",
            "VISION_CLASSIFICATION_MODEL: efficientnet-lite0:{} stands there twice.",
        ),
        ("efficientnet-lite0,nanodet-g", "is a model for detection, not for classification."),
        ("efficientnet-lite0,,nanodet-g", "VISION_CLASSIFICATION_MODEL"),
        ("efficientnet-lite0,cats", "The store has no cats."),
    ],
)
def test_a_wrong_list_ends_the_start_with_one_line(home: Path, value: str, message: str) -> None:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "VISION_CLASSIFICATION_MODEL": value}
    command = [SERVE[0], "serve", "--port", str(free_port())]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    [version] = [folder.name for folder in (home / "models" / "efficientnet-lite0").glob("*/")]
    assert message.format(version) in run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_name(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = another(home, tmp_path_factory)
    tag = save_copy(place, "dogs", "some ", graph="no graph")
    setting = {"VISION_CLASSIFICATION_MODEL": f"efficientnet-lite0,{tag}"}
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(place), **setting}
    command = [SERVE[0], "serve", "--port", str(free_port())]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert f"{tag} cannot be loaded: " in run.stdout + run.stderr


def test_a_bento_pins_all_of_them_in_their_order(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = another(home, tmp_path_factory)
    tag = save_copy(place, "dogs", "some ")
    setting = {"VISION_CLASSIFICATION_MODEL": f"{tag},efficientnet-lite0"}
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(place), **setting}
    command = [SERVE[0], "build", "--output", "tag"]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120)
    bento = place / "bentos" / "vision" / run.stdout.strip().rpartition(":")[2]
    with served(place, ["env", "-C", str(bento), *SERVE, f"vision:{bento.name}"]) as running:
        listed = json.loads(httpx.get(f"{running.url}/models").text)["models"]
    classifiers = [f"{model['name']}:{model['version']}" for model in listed if model["task"] == "classification"]
    assert classifiers[0] == tag
    assert [name.partition(":")[0] for name in classifiers] == ["dogs", "efficientnet-lite0"]
