"""python -m bulk, as its users run it: what it answers is what the service answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from testkit.photographs import PHOTOS, assert_same, encoded
from testkit.servers import OFFLINE, ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a copy, and what is none."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("bus", "coffee", "cat"):
        shutil.copy(PHOTOS[name], folder)
    (folder / "sub").mkdir()
    shutil.copy(PHOTOS["bus"], folder / "sub" / "copy.jpg")
    (folder / "sub" / "broken.jpg").write_bytes(PHOTOS["bus"].read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def environment(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "XDG_CACHE_HOME": cache}


@pytest.fixture(scope="module")
def bulk(environment: dict[str, str]) -> Command:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bulk", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def results(bulk: Command, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scoring the photographs with all three starters wrote."""
    out = tmp_path_factory.mktemp("out") / "results"
    run = bulk("score", photos, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "5 in " in run.stdout
    assert "1 error: undecodable_image 1" in run.stdout
    assert run.stderr == ""  # no progress where there is no terminal
    return out


def rows(results: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(results / "part-00000.parquet").to_pylist()}


def test_rows_are_what_the_service_answers(results: Path, photos: Path, client: httpx.Client) -> None:
    table = rows(results)
    assert list(table) == ["bus.jpg", "chelsea.png", "coffee.png", "sub/broken.jpg", "sub/copy.jpg"]
    for id, row in table.items():
        answer = client.post("/analyze", files={"images": (photos / id).read_bytes()}).json()["results"][0]
        if row["status"] == "error":
            assert {name: answer["error"][name] for name in ("code", "message")} == row["error"]
            continue
        assert answer["size"] == {"width": row["width"], "height": row["height"]}
        for word in ("classification", "captioning", "detection"):
            assert_same(answer[word], row[word], min_score=0.25)


def test_a_second_run_infers_nothing_and_answers_the_same(
    bulk: Command, results: Path, photos: Path, tmp_path: Path
) -> None:
    run = bulk("score", photos, "--out", tmp_path, "--features", "detection", "--min-score", "0.6", "--labels", "bus")
    assert run.returncode == 0, run.stderr
    assert "4 known before" in run.stdout
    before = rows(results)
    for id, row in rows(tmp_path).items():
        if row["status"] == "ok":
            found = [one for one in before[id]["detection"]["objects"] if one["score"] >= 0.6 and one["label"] == "bus"]
            assert row["detection"]["objects"] == found
    assert rows(tmp_path)["bus.jpg"]["detection"]["objects"]


REFUSED = {
    "nowhere": "nowhere is not there",
    "PHOTOS --features smell": "'smell' is none",
    "PHOTOS --features detection:nobody": "The store has no nobody",
    "PHOTOS --features detection:flickr8k-captioner": "is a model for captioning",
    "PHOTOS --features detection,detection:nanodet-g": "mean the same model",
    "PHOTOS --features detection --top-k 3": "--top-k is no option of detection",
    "PHOTOS --features classification --top-k 0": "--top-k: Input should be greater",
    "PHOTOS --features detection --labels busses": "Did you mean 'bus'?",
    "PHOTOS --device cuda:7": "there is no cuda:7 here",
    "PHOTOS --device gpu": "'gpu' is none of auto",
    "PHOTOS/sub/broken.jpg": "is neither a folder nor a",
}

ONE_AFTER_THE_OTHER = """
import sys
from bulk.__main__ import main
for line in sys.stdin:
    sys.argv = ["bulk", *line.split()]
    print(main(), file=sys.stderr)
"""


def test_what_cannot_be_asked_is_one_line_and_exit_2(environment: dict[str, str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = "".join(f"score {one.replace('PHOTOS', str(photos))} --out {out}\n" for one in REFUSED)
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER]
    run = subprocess.run(command, cwd=ROOT, env=environment, input=asked, capture_output=True, text=True, check=True)
    lines = run.stderr.splitlines()
    assert lines[1::2] == ["2"] * len(REFUSED), run.stderr
    for line, says in zip(lines[::2], REFUSED.values(), strict=True):
        assert says in line
    assert not out.exists()


def test_ctrl_c_finishes_the_shard_in_work_and_the_same_command_goes_on(
    bulk: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(400):
        (photos / f"{index:03}.png").write_bytes(encoded(Image.effect_noise((64, 64), index).convert("RGB")))
    arguments = ["score", str(photos), "--out", str(out), "--features", "classification", "--shard-rows", "20"]
    command = [sys.executable, "-m", "bulk", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "part-00001.parquet").exists():
            assert process.poll() is None
            sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "The same command goes on" in said
    whole = len(list(out.glob("part-*.parquet")))
    assert 2 <= whole < 20
    assert all(pq.read_metadata(part).num_rows == 20 for part in out.glob("part-*.parquet"))
    run = bulk(*arguments)
    assert (run.returncode, len(list(out.glob("part-*.parquet")))) == (0, 20), run.stderr
    assert json.loads((out / "manifest.json").read_text())["errors"] == {}
