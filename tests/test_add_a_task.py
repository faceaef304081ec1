"""docs/add-a-task.md, followed word by word: one folder and one entry make a task of the service."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, SERVE, Served, another, metric, served

PAGE = (ROOT / "docs" / "add-a-task.md").read_text()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the service with the page's files in it."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "service.py", tree)
    shutil.copytree(ROOT / "vision", tree / "vision", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "vision" / "tasks" / "brightness").mkdir()
    (tree / "vision" / "tasks" / "brightness" / "__init__.py").touch()
    files = re.findall(r"^`([\w/.]+\.py)`:\n\n```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(files) == 4
    for name, text in files:
        (tree / name).write_text(text)
    return tree


@pytest.fixture(scope="module")
def bright(tree: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = another(home, tmp_path_factory)
    environment = {**OFFLINE, "BENTOML_HOME": str(place), "PATH": ""}
    subprocess.run([sys.executable, "save_mean.py"], cwd=tree, env=environment, check=True)
    with served(place, ["env", "-C", str(tree), *SERVE]) as running:
        yield running


def test_only_the_entry_was_changed(tree: Path) -> None:
    ours = {file.relative_to(ROOT): file.read_text() for file in (ROOT / "vision").rglob("*.py")}
    theirs = {file.relative_to(tree): file.read_text() for file in (tree / "vision").rglob("*.py")}
    added = {str(path.parent) for path in theirs.keys() - ours.keys()}
    assert added == {"vision/tasks/brightness"}
    assert [str(path) for path in ours if ours[path] != theirs[path]] == ["vision/tasks/__init__.py"]


def test_its_endpoint_answers_and_refuses(bright: Served) -> None:
    photo = PHOTOS["bus"].read_bytes()
    answer = httpx.post(f"{bright.url}/measure", files={"images": photo}, data={"threshold": "0.2"})
    [result] = answer.json()["results"]
    assert 0.2 < result["brightness"] < 0.8
    assert result["bright"]
    assert result["model"]["name"] == "mean"
    wrong = httpx.post(f"{bright.url}/measure", files={"images": photo}, data={"threshold": "2"})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["code"] == "invalid_option"
    assert wrong.json()["error"]["message"].startswith("threshold")


def test_it_is_part_of_analyze(bright: Served) -> None:
    photo = PHOTOS["bus"].read_bytes()
    [all_of_them] = httpx.post(f"{bright.url}/analyze", files={"images": photo}, timeout=60).json()["results"]
    assert {"classification", "captioning", "detection", "brightness"} <= all_of_them.keys()
    data = {"features": ["brightness", "classification"], "threshold": "1", "top_k": "1"}
    [two] = httpx.post(f"{bright.url}/analyze", files={"images": photo}, data=data).json()["results"]
    assert not two["brightness"]["bright"]
    assert len(two["classification"]["labels"]) == 1


def test_it_is_documented_listed_and_ready(bright: Served) -> None:
    document = httpx.get(f"{bright.url}/docs.json").json()
    form = document["paths"]["/measure"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "threshold" in form["properties"]
    assert "threshold" in document["components"]["schemas"]["AnalyzeOptions"]["properties"]
    listed = {model["task"]: model["name"] for model in httpx.get(f"{bright.url}/models").json()["models"]}
    assert listed["brightness"] == "mean"
    ready = httpx.get(f"{bright.url}/readyz").json()
    assert ready["runners"]["brightness"] == "ready"
    assert set(bright.workers()) == {"vision", "classification", "captioning", "detection", "brightness"}


def test_it_is_batched(bright: Served) -> None:
    def batches(part: str) -> float:
        return metric(bright, f"vision_batch_images_{part}", task="brightness")

    count, total = batches("count"), batches("sum")
    photo = PHOTOS["bus"].read_bytes()
    answer = httpx.post(f"{bright.url}/measure", files=[("images", photo)] * 16)
    assert len(answer.json()["results"]) == 16
    assert batches("sum") - total == 16
    assert batches("count") - count < 16
