"""The light install: models with graphs are saved and served without PyTorch; what needs more says what brings it."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from testkit.photographs import PHOTOS, assert_same
from testkit.servers import OFFLINE, ROOT, Served, free_port, served

pytestmark = pytest.mark.served

ABSENT = ("torch", "torchvision", "transformers", "timm", "ultralytics", "cv2")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="module")
def starters(light_install: Path, empty: Path) -> Iterator[Served]:
    """A service of the starters, saved and served by the light install."""
    saved = run(light_install, empty, "starter")
    assert saved.returncode == 0, saved.stderr
    settings = dict(line.split("=") for line in saved.stdout.split())
    with served(empty, [str(light_install / "bentoml"), "serve", "--port", "{port}"], **settings) as running:
        yield running


def run(light_install: Path, home: Path, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings}
    command = [str(light_install / "python"), "-m", "train_and_save", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def answer(url: str, photo: Path) -> Any:
    reply = httpx.post(f"{url}/analyze", files={"images": photo.read_bytes()}, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()["results"][0]


def test_the_starters_answer_as_in_the_full_install(starters: Served, server: str) -> None:
    for photo in PHOTOS.values():
        assert_same(answer(starters.url, photo), answer(server, photo), min_score=0.25)
    versions = [
        {model["name"]: model["version"] for model in httpx.get(f"{url}/models").json()["models"]}
        for url in (starters.url, server)
    ]
    assert versions[0] == versions[1]
    assert not httpx.get(f"{starters.url}/version").json()["libraries"].keys() & set(ABSENT)


def test_it_is_small_and_has_no_torch(light_install: Path, starters: Served) -> None:
    [packages] = (light_install.parent / "lib").glob("python*/site-packages")
    assert not [name for name in ABSENT if (packages / name).exists()]
    # The Makefile's .venv has pip and uv besides, some 80 MB.
    assert sum(file.lstat().st_size for file in packages.rglob("*")) <= 430_000_000


COMMANDS = (["hub"], ["path", "vision"], ["train", "detection", "vision", "--name", "a"], ["evaluate", "a", "vision"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_needs_more_says_so_in_one_line(light_install: Path, empty: Path, command: list[str]) -> None:
    refused = run(light_install, empty, *command)
    assert refused.returncode == 1
    line = rf"{command[0]}: \w+ is not installed; `make train` installs what this command needs.\n"
    assert re.fullmatch(line, refused.stderr), refused.stderr


@pytest.mark.usefixtures("starters")
def test_a_gpu_needs_the_full_install(light_install: Path, empty: Path) -> None:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(empty), "VISION_DEVICE": "cuda"}
    command = [str(light_install / "bentoml"), "serve", "--port", str(free_port())]
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "VISION_DEVICE=cuda: PyTorch is not installed; `make serve FULL=1` installs it" in refused.stderr
    assert "Traceback" not in refused.stderr
