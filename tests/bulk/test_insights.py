"""From photographs to insights and impact by the commands that users call; what cannot be asked is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from testkit import results
from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT

HEAD = "classification:efficientnet-lite0@head"


def bulk(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "bulk", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "photos.csv"
    broken = path.with_name("broken.jpg")
    broken.write_bytes(b"\xff\xd8\xff\xe0 broken")
    lines = [f"{PHOTOS[name]},ada" for name in ("bus", "hopper", "bus")] + [f"{broken},ada", f"{PHOTOS['coffee']},bob"]
    path.write_text("path,group\n" + "\n".join(lines) + "\n")
    return path


def test_photographs_become_insights_of_each_group(home: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    asked = ("score", manifest, "--features", "classification", "detection", HEAD, "--cache", tmp_path / "cache")
    run = bulk(home, *asked, "--out", out)
    assert run.returncode == 0, run.stderr
    run = bulk(home, "insights", out, "--by", "group")
    assert run.returncode == 0, run.stderr
    assert "2 groups of 5 pictures" in run.stdout
    ada, bob = pq.read_table(out / "insights-by-group.parquet").to_pylist()
    assert (ada["group"], ada["pictures"], ada["answered"]) == ("ada", 4, 3)
    assert ada["near_duplicates"] == [[0, 2]]
    assert ada["main_subject"]["sunglasses"][1:] == [False, ada["main_subject"]["sunglasses"][0], None]
    assert ada["failed"][0]["error"]["code"] == "undecodable_image"
    assert bob["main_subject"] == {"boxes": [None], "sunglasses": [None], "ever_without_sunglasses": None}
    again = bulk(home, *asked, "--out", tmp_path / "again")
    assert "5 known before" in again.stdout or "4 known before" in again.stdout, again.stdout


def test_a_head_needs_a_detector_and_other_words_are_refused(home: Path, manifest: Path, tmp_path: Path) -> None:
    for features in (["classification@head"], ["detection", "detection@head"], ["detection", "classification@foot"]):
        run = bulk(home, "score", manifest, "--features", *features, "--out", tmp_path / "out")
        assert run.returncode == 2
        assert len(run.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_impact_leaves_a_page_and_tables(home: Path, tmp_path: Path) -> None:
    some = [results.row(str(one), f"g{one}", {"beach": 0.9} if one % 2 else {}) for one in range(100)]
    folder = results.write(tmp_path / "results", some)
    likes = tmp_path / "likes.csv"
    likes.write_text("group,likes\n" + "".join(f"g{one},{one % 2 + one / 1000}\n" for one in range(90)))
    run = bulk(home, "impact", folder, likes, "--by", "group", "--outcome", "likes", "--draws", "100")
    assert run.returncode == 0, run.stderr
    assert "1 of 1 signals go with likes in 90 groups; 10 groups have no likes, 0 no pictures" in run.stdout
    assert {file.name for file in (folder / "impact-likes").iterdir()} == {
        "impact.csv",
        "impact.html",
        "impact.parquet",
    }


WRONG = {
    "no results": (("insights", "{tmp}/none"), "is no folder"),
    "no such column": (("insights", "{results}", "--by", "street"), "no column 'street'"),
    "no results to show": (("summary", "{tmp}/none"), "is no folder"),
    "nothing to compare with": (("compare", "{results}", "{tmp}/none"), "is no folder"),
    "nowhere to write": (
        ("export", "{results}", "--to", "coco", "--out", "{results}/manifest.json"),
        "cannot be written",
    ),
    "no outcome": (("impact", "{results}", "{results}/none.csv", "--outcome", "likes"), "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_asked_is_one_line(home: Path, tmp_path: Path, name: str) -> None:
    arguments, message = WRONG[name]
    folder = results.write(tmp_path / "results", [results.row("1", "g")])
    run = bulk(home, *(part.format(tmp=tmp_path, results=folder) for part in arguments))
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
