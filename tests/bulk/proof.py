"""make test-kill: bulk scoring killed at random moments, and what is there in the end.

No picture is lost, none is there twice, and the rows are those of a run that nobody disturbed.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from testkit.photographs import encoded
from testkit.servers import OFFLINE, ROOT

PICTURES, KILLS = int(os.environ.get("PICTURES", "20000")), int(os.environ.get("KILLS", "100"))
SEED = int(os.environ.get("SEED", "0"))


def noise(folder: Path, count: int) -> Path:
    """Write small pictures, each its own, every fortieth broken, every fiftieth a copy."""
    folder.mkdir()
    draw = np.random.default_rng(SEED)
    for index in range(count):
        seed = 0 if index % 50 == 7 else index
        pixels = np.random.default_rng([SEED, seed]).integers(0, 256, (24, 24, 3), np.uint8)
        data = encoded(Image.fromarray(pixels), "JPEG")
        (folder / f"{index:06}.jpg").write_bytes(data[: int(draw.integers(4, 60))] if index % 40 == 3 else data)
    return folder


def command(photos: Path, out: Path, cache: Path, shard_rows: int) -> list[str]:
    arguments = ["--features", "classification", "--shard-rows", str(shard_rows), "--cache", str(cache)]
    return [sys.executable, "-m", "bulk", "score", str(photos), "--out", str(out), *arguments]


def dataset(out: Path) -> list[dict[str, Any]]:
    parts = sorted(out.glob("part-*.parquet"))
    return [row | {"ms": 0} for part in parts for row in pq.read_table(part).to_pylist()]


def score_through(asked: Sequence[str], out: Path, environment: dict[str, str], kills: int, within: float) -> int:
    """Score, killed up to `kills` times, each `within` seconds after it took the place; return how often it was."""
    moments = random.Random(SEED)
    killed = 0
    while killed < kills:
        before = (out / "_lock").stat().st_mtime_ns if out.exists() else 0
        with subprocess.Popen(asked, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not (
                (lock := out / "_lock").exists() and lock.stat().st_mtime_ns > before
            ):
                sleep(0.005)
            try:
                assert process.wait(moments.uniform(0, within)) == 0
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        killed += 1
    subprocess.run(asked, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return killed


def prove(home: Path, place: Path, pictures: int, kills: int, within: float, shard_rows: int) -> int:
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    photos, whole, broken = noise(place / "photos", pictures), place / "whole", place / "broken"
    undisturbed = command(photos, whole, place / "whole.sqlite", shard_rows)
    subprocess.run(undisturbed, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    asked = command(photos, broken, place / "broken.sqlite", shard_rows)
    killed = score_through(asked, broken, environment, kills, within)
    rows = dataset(broken)
    assert [row["id"] for row in rows] == [f"{index:06}.jpg" for index in range(pictures)]
    assert rows == dataset(whole)
    assert not list(broken.glob("*.new"))
    return killed


def test_a_run_that_is_killed_at_random_moments_is_whole_in_the_end(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    within = float(os.environ.get("WITHIN", "2.5"))
    killed = prove(home, tmp_path, PICTURES, KILLS, within, shard_rows=50)
    with capsys.disabled():
        print(f"\n{PICTURES:,} pictures, killed {killed} times: each is there once, as in a run that nobody disturbed")
    assert killed > KILLS / 2
