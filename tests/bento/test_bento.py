"""The Bento: what it holds, what it pins, and that it answers elsewhere as the working tree does here."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, SERVE, serve
from vision.api.page import FILES


@pytest.fixture(scope="module")
def archive(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Bento with its models as `bentoml export` writes it; the store it was built in is gone."""
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(home / "models", store / "models")
    tag = bentoml("build", "--output", "tag", home=store).strip().removeprefix("__tag__:")
    archive = tmp_path_factory.mktemp("archive") / "vision.zip"
    bentoml("export", tag, str(archive), home=store)
    shutil.rmtree(store)
    return archive


@pytest.fixture(scope="module")
def bento(archive: Path) -> Path:
    """The folder that the archive holds."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(archive.with_suffix(""))
    return archive.with_suffix("")


def bentoml(*arguments: str, home: Path) -> str:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    run = subprocess.run([SERVE[0], *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_it_holds_what_serving_needs_and_no_more(bento: Path) -> None:
    assert {entry.name for entry in bento.iterdir()} == {"README.md", "apis", "bento.yaml", "env", "models", "src"}
    source = {str(file.relative_to(bento / "src")) for file in (bento / "src").rglob("*") if file.is_file()}
    vision = {str(file.relative_to(ROOT)) for file in (ROOT / "vision").rglob("*.*") if file.suffix != ".pyc"}
    examples = {f"examples/{file.name}" for file in (ROOT / "examples").iterdir()}
    assert source == {"bentofile.yaml", "service.py"} | vision | examples


def test_every_dependency_is_pinned_with_hashes(bento: Path) -> None:
    inside = pins(bento / "env" / "python" / "requirements.txt")
    assert inside == pins(ROOT / "requirements.lock")
    assert all(inside.values())


def test_the_light_lock_is_a_part_of_the_full_one_without_torch() -> None:
    """So that installing one after the other changes nothing that is there."""
    light, full = pins(ROOT / "requirements-light.lock"), pins(ROOT / "requirements.lock")
    assert all(light.values())
    assert light.items() <= full.items()
    assert {"torch", "torchvision", "transformers", "timm", "ultralytics"} <= full.keys() - light.keys()


def test_every_locked_package_tells_its_licence() -> None:
    told = re.findall(r"^\| ([\w.-]+) \| \d[\w.]* \| \S", (ROOT / "LICENCES.md").read_text(), flags=re.MULTILINE)
    locked = [line.split("\\")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    installed = [pin for pin in map(Requirement, locked) if not pin.marker or pin.marker.evaluate(LINUX)]
    assert set(map(canonical, told)) == {canonical(pin.name) for pin in installed}, "`make sbom` writes it again"


LINUX = {
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.0",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: Path) -> dict[str, set[str]]:
    """The hashes of each requirement, all of which have an exact version."""
    pins: dict[str, set[str]] = {}
    for line in requirements.read_text().replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            pin, *hashes = line.split(" --hash=")
            name = re.match(r"([\w.-]+)==[\w.+]+ *(;|$)", pin)
            assert name, line
            pins.setdefault(name[1], set()).update(map(str.strip, hashes))
    return pins


def test_elsewhere_it_answers_as_the_working_tree_does_here(archive: Path, server: str, tmp_path: Path) -> None:
    """Imported into an empty home, served from another folder without settings, beside a newer model of one name."""
    home = tmp_path / "home"
    bentoml("import", str(archive), home=home)
    save_a_newer_detector(home)
    with serve(home, ["env", "-C", str(tmp_path), *SERVE, "vision:latest"]) as url:
        assert cards(url) == cards(server)
        for path in FILES:
            assert httpx.get(url + path).content == httpx.get(server + path).content
        for photo in ("bus", "cat"):
            assert answer(url, photo) == answer(server, photo)


def cards(url: str) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = httpx.get(f"{url}/models").json()["models"]
    return [{name: value for name, value in model.items() if name != "memory_bytes"} for model in models]


def save_a_newer_detector(home: Path) -> None:
    """Make `nanodet-g` without a version name another model than the Bento's."""
    [pinned] = (home / "models" / "nanodet-g").glob("*/")
    newer = shutil.copytree(pinned, pinned.with_name("newer"))
    card = json.loads((newer / "card.json").read_text())
    (newer / "card.json").write_text(json.dumps({**card, "version": "newer"}))
    (pinned.parent / "latest").write_text("newer")


def answer(url: str, photo: str) -> Any:
    reply = httpx.post(f"{url}/analyze", files={"images": PHOTOS[photo].read_bytes()}, timeout=120)
    assert reply.status_code == 200, reply.text
    [result] = reply.json()["results"]
    del result["ms"]
    return result


@pytest.mark.served
def test_without_its_models_the_build_ends_with_one_line_and_the_way_out(tmp_path: Path) -> None:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(tmp_path)}
    run = subprocess.run([SERVE[0], "build"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    assert run.stderr.strip().endswith("`python -m train_and_save starter` saves the starters.")
    assert len((run.stdout + run.stderr).strip().splitlines()) == 1
