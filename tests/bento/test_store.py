"""Saving, verifying and choosing models; settings that are wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, SERVE, another, free_port, serve
from vision.bento import store
from vision.core.schemas import Card
from vision.tasks import TASKS


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, **environment},
        capture_output=True,
        text=True,
    )


def test_saving_again_changes_nothing(home: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (home / "models").rglob("*") if path.is_file()}

    before = files()
    again = python("-m", "train_and_save", "starter", BENTOML_HOME=str(home))
    assert again.returncode == 0, again.stderr
    assert len(again.stdout.split()) == 3
    assert files() == before


def test_saving_again_mends_a_damaged_model_and_renews_its_card(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = another(home, tmp_path_factory)
    [weights] = (place / "models" / "nanodet-g").glob("*/model.safetensors")
    data = weights.read_bytes()
    weights.unlink()  # a hard link to the session's own
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    [card] = (place / "models" / "efficientnet-lite0").glob("*/card.json")
    before = json.loads(card.read_text())
    card.unlink()
    card.write_text(json.dumps(before | {"architecture": "EfficientNot"}))
    [older] = (place / "models" / "flickr8k-captioner").glob("*/card.json")
    unmeasured = json.loads(older.read_text()) | {"engines": {}}
    older.unlink()
    older.write_text(json.dumps(unmeasured))  # as saved before captioners had graphs
    assert python("-m", "train_and_save", "starter", BENTOML_HOME=str(place)).returncode == 0
    assert weights.read_bytes() == data
    renewed = json.loads(card.read_text())
    assert renewed.pop("engines").keys() == before.pop("engines").keys()  # measured again
    for each in (renewed, before):
        del each["sha256"]["openvino.xml"]  # says which of two ways was the faster, this time
    assert renewed == before
    store.verify(card.parent)  # that digest, too, is of what lies there
    assert json.loads(older.read_text())["engines"]


def test_what_is_added_to_a_model_stays_when_it_is_saved_again(
    home: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """As `optimize` adds code and figures for a GPU."""
    place = another(home, tmp_path_factory)
    (tmp_path / "cuda.json").write_text("{}")
    code = """
import sys
from pathlib import Path
from vision.bento import store
tag = store.resolve("nanodet-g")
card = store.verify(store.folder(tag))
store.add(tag, [Path(sys.argv[1])], card.model_copy(update={"metrics": {**card.metrics, "AP on a GPU": 1.0}}))
print(sorted(store.verify(store.folder(tag)).sha256.keys() - card.sha256.keys()))
"""
    added = python("-c", code, str(tmp_path / "cuda.json"), BENTOML_HOME=str(place))
    assert added.stdout.strip() == "['cuda.json']", added.stderr
    assert python("-m", "train_and_save", "starter", BENTOML_HOME=str(place)).returncode == 0
    [kept] = (place / "models" / "nanodet-g").glob("*/cuda.json")
    card = json.loads(kept.with_name("card.json").read_text())
    assert card["metrics"]["AP on a GPU"] == 1
    assert "cuda.json" in card["sha256"]


def test_saved_models_are_safetensors_with_verified_cards(home: Path) -> None:
    folders = [path.parent for path in (home / "models").rglob("card.json")]
    assert len(folders) == 3
    for folder in folders:
        card = store.verify(folder)
        assert card.version == folder.name
        assert card.name == folder.parent.name
        assert set(card.sha256) == {path.name for path in folder.iterdir()} - {"card.json", "model.yaml"}
        assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".yaml", ".xml", ".bin"}


def test_shipped_weights_are_small() -> None:
    starters = [ROOT / "train_and_save" / "starter" / task for task in TASKS]
    shipped = [path for starter in starters for path in starter.rglob("*") if path.is_file()]
    assert {path.suffix for path in shipped} == {".json", ".safetensors", ".xml", ".bin"}
    assert sum(path.stat().st_size for path in shipped) <= 95_000_000
    [captioner] = [path for path in shipped if path.parts[-2:] == ("captioning", "model.safetensors")]
    assert captioner.stat().st_size <= 20_000_000


def test_one_flipped_byte_is_found(home: Path, tmp_path: Path) -> None:
    [saved] = (home / "models" / "nanodet-g").glob("*/")
    folder = shutil.copytree(saved, tmp_path / "nanodet-g")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"nanodet-g:\w+ is damaged: model\.safetensors"):
        store.verify(folder)


def test_a_damaged_model_refuses_to_start_with_its_name(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "models", tmp_path / "models")
    [weights] = (tmp_path / "models" / "nanodet-g").glob("*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(tmp_path)}
    run = subprocess.run(
        [SERVE[0], "serve", "--port", str(free_port())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert f"nanodet-g:{weights.parent.name} is damaged: model.safetensors" in run.stdout + run.stderr


def test_the_version_is_made_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    first = store.version(tmp_path)
    (tmp_path / "card.json").write_text("a card does not count")
    assert store.version(tmp_path) == first
    (tmp_path / "a.json").write_text("2")
    assert store.version(tmp_path) != first


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("VISION_DEVICES", "cpu", "VISION_DEVICES is no setting. Known are VISION_DEVICE, "),
        ("VISION_DEVICE", "tpu", "VISION_DEVICE=tpu: 'tpu' is none of auto, cpu, cuda and cuda:1."),
        ("VISION_MAX_PIXELS", "many", "VISION_MAX_PIXELS=many: Input should be a valid integer"),
    ],
)
@pytest.mark.served
def test_a_wrong_setting_ends_the_start_with_one_line(name: str, value: str, message: str) -> None:
    run = python("-c", "import vision.settings", **{name: value})
    assert run.returncode != 0
    assert run.stderr.startswith(message)
    assert len(run.stderr.splitlines()) == 1


def test_settings_bound_requests_and_pin_models(home: Path) -> None:
    [version] = [folder.name for folder in (home / "models" / "nanodet-g").glob("*/")]
    settings = {"VISION_MAX_IMAGES": "1", "VISION_MAX_PIXELS": "100", "VISION_DETECTION_MODEL": f"nanodet-g:{version}"}
    with serve(home, **settings) as url:
        two = httpx.post(f"{url}/classify", files=[("images", b"x")] * 2)
        assert two.json()["error"]["code"] == "too_many_images"
        large = httpx.post(f"{url}/classify", files={"images": PHOTOS["bus"].read_bytes()})
        assert large.json()["error"]["code"] == "too_many_pixels"
        models = httpx.get(f"{url}/models").json()["models"]
        assert [Card(**model).version for model in models if model["task"] == "detection"] == [version]
