"""Models as a hub has them, given graphs by a full install, are served by the light one out of a Bento."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testkit import hub
from testkit.servers import OFFLINE, ROOT, SERVE, Served, served
from tests.train_and_save.test_hub import (
    PICTURES,
    assert_same_labels,
    assert_same_objects,
    post,
    reference_caption,
    reference_labels,
)

pytestmark = pytest.mark.served

FULL = bool(os.environ.get("FULL"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    hub.vit(root / "vit", FULL)
    hub.blip(root / "blip", FULL)
    hub.rt_detr(root / "rtdetr", FULL)
    hub.yolo(root / "yolo", "yolo26n")
    return root


@pytest.fixture(scope="module")
def bento(root: Path, light_install: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of a Bento that was built by the full install."""
    home = tmp_path_factory.mktemp("home")

    def run(*command: str | Path, **settings: str) -> str:
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tags: dict[str, list[str]] = {}
    for folder in sorted(root.iterdir()):
        variable, _, tag = run(sys.executable, "-m", "train_and_save", "path", folder).strip().partition("=")
        tags.setdefault(variable, []).append(tag)
    run(SERVE[0], "build", **{variable: ",".join(several) for variable, several in tags.items()})
    command = ["env", "-C", str(home), str(light_install / "bentoml"), *SERVE[1:], "vision:latest"]
    with served(home, command) as running:
        yield running


@pytest.mark.parametrize("photo", PICTURES)
def test_it_answers_as_the_reference_libraries(bento: Served, root: Path, photo: str) -> None:
    data = PICTURES[photo]
    assert_same_labels(post(bento.url, "/classify", data), reference_labels(root / "vit", data))
    said = post(bento.url, "/caption", data, num_beams=1, max_new_tokens=12)
    caption, score = reference_caption(root / "blip", data)
    assert said["caption"] == caption
    assert said["score"] == pytest.approx(score, abs=1e-4)
    assert_same_objects(bento.url, root / "rtdetr", data, model="rtdetr")
    assert_same_objects(bento.url, root / "yolo" / "yolo26n.pt", data, model="yolo")


def test_no_torch_is_there(bento: Served) -> None:
    assert httpx.get(f"{bento.url}/version").json()["libraries"].keys() == {"bentoml", "openvino", "pillow"}
