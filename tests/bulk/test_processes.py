"""A run by several processes writes what one writes; whichever of them dies, nothing is lost and nothing is made up."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bulk import processes, questions
from bulk.questions import Loaded, Wanted
from testkit.photographs import PHOTOS, assert_same, encoded
from testkit.servers import OFFLINE, ROOT, until
from vision.core import device, frames
from vision.core.device import Gpu
from vision.core.engine import DeviceLostError
from vision.core.errors import VisionError
from vision.core.schemas import Item
from vision.tasks import TASKS

SHARD_ROWS, SHARDS = 20, 40


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hundred small pictures, of which one is none."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(SHARD_ROWS * SHARDS):
        (folder / f"{index:04}.png").write_bytes(encoded(Image.effect_noise((64, 64), index).convert("RGB")))
    (folder / "0007.png").write_bytes(b"no picture")
    return folder


def command(photos: Path, out: Path, *more: str) -> list[str]:
    asked = ["--features", "classification", "--shard-rows", str(SHARD_ROWS), "--no-cache", *more]
    return [sys.executable, "-m", "bulk", "score", str(photos), "--out", str(out), *asked]


def table(out: Path) -> list[dict[str, Any]]:
    """The rows, but for how long each took."""
    parts = sorted(out.glob("part-*.parquet"))
    return [{**row, "ms": None} for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def alone(environment: dict[str, str], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run(command(photos, out), cwd=ROOT, env=environment, check=True, capture_output=True)
    return table(out)


def finish(environment: dict[str, str], photos: Path, out: Path) -> subprocess.CompletedProcess[str]:
    asked = command(photos, out, "--workers", "2")
    return subprocess.run(asked, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def test_workers_write_what_one_process_writes(
    environment: dict[str, str], photos: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = finish(environment, photos, tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert "800 pictures in " in run.stdout
    assert "1 error: unsupported_format 1" in run.stdout
    assert len(alone) == SHARD_ROWS * SHARDS
    assert table(tmp_path) == alone
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["workers"], manifest["shards_done"]) == (2, SHARDS)


def test_several_models_answer_a_worker_as_they_answer_here(environment: dict[str, str], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("bus", "coffee", "cat"):
        (photos / f"{name}.jpg").write_bytes(PHOTOS[name].read_bytes())
    features = ("--features", ",".join(TASKS))
    for workers in ("0", "1"):
        asked = command(photos, tmp_path / workers, *features, "--workers", workers)
        subprocess.run(asked, cwd=ROOT, env=environment, check=True, capture_output=True)
    here, there = table(tmp_path / "0"), table(tmp_path / "1")
    assert len(here) == 3
    for one, other in zip(here, there, strict=True):
        assert other["status"] == "ok"
        for task in TASKS:
            assert_same(other[task], one[task], min_score=0.3)


@contextmanager
def begun(environment: dict[str, str], photos: Path, out: Path) -> Iterator[tuple[Any, list[psutil.Process]]]:
    """Begin a run, and have two shards put; yield its process, that of the models, and the workers."""
    with subprocess.Popen(
        command(photos, out, "--workers", "2"), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        asyncio.run(until(lambda: len(list(out.glob("part-*.parquet"))) > 1))
        children = psutil.Process(process.pid).children()
        spawned = [one for one in children if any("spawn_main" in word for word in one.cmdline())]
        assert len(spawned) == 3
        yield process, sorted(spawned, key=lambda one: one.pid)
        psutil.wait_procs(spawned, timeout=60)
        assert not any(one.is_running() for one in spawned)


LOSSES: dict[str, tuple[Callable[[Any, list[psutil.Process]], object], int, str]] = {
    "a worker": (lambda _, spawned: spawned[1].kill(), 1, "A worker ended with exit code -9."),
    "the models": (lambda _, spawned: spawned[0].kill(), 1, "A process that ran models ended."),
    "all, by Ctrl-C": (lambda process, _: process.send_signal(signal.SIGINT), 130, "pictures are not scored yet."),
    "the command": (lambda process, _: process.kill(), -9, ""),
}


@pytest.mark.parametrize("lost", LOSSES)
def test_the_same_command_goes_on_after_a_loss(
    lost: str, environment: dict[str, str], photos: Path, alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    end, code, says = LOSSES[lost]
    with begun(environment, photos, tmp_path) as (process, spawned):
        end(process, spawned)
        _, said = process.communicate()
    assert process.returncode == code, said
    assert says in said
    assert "Traceback" not in said
    whole = table(tmp_path)
    assert SHARD_ROWS <= len(whole) < len(alone)
    assert all(row in alone for row in whole)
    assert finish(environment, photos, tmp_path).returncode == 0
    assert table(tmp_path) == alone


def test_what_cannot_be_loaded_is_one_line_and_nothing_is_written(
    environment: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    asked = command(photos, tmp_path / "out", "--workers", "2", "--device", "cuda:7")
    run = subprocess.run(asked, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert "there is no cuda:7 here" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Gpus:
    """A machine with GPUs."""

    def __init__(self, count: int) -> None:
        self._count = count

    def gpus(self) -> list[Gpu]:
        return [Gpu("H100", 80 << 30)] * self._count


@pytest.mark.parametrize(
    ("gpus", "setting", "devices", "workers"),
    [
        (0, "auto", ["auto"], 0),
        (1, "auto", ["cuda:0"], 15),
        (2, "auto", ["cuda:0", "cuda:1"], 14),
        (2, "cuda", ["cuda:0", "cuda:1"], 14),
        (2, "cuda:1", ["cuda:1"], 15),
        (2, "cpu", ["cpu"], 0),
        (2, "detection=cuda:1", ["detection=cuda:1"], 0),
    ],
)
def test_each_gpu_has_a_process_and_workers_the_other_cores(
    gpus: int, setting: str, devices: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "DRIVER", Gpus(gpus))
    monkeypatch.setattr(device.likely_gpu, "__defaults__", (Gpus(gpus),))
    monkeypatch.setattr(device, "cores", lambda: 16)
    task = TASKS["classification"]
    wanted = [Wanted("classification", task, "any:1", task.options())]
    assert processes.devices(wanted, setting) == devices
    assert processes.default(wanted, setting) == workers


class Lost:
    """A model whose GPU has a sticky error."""

    def predict(self, items: Sequence[Item[Any]]) -> list[Any]:
        raise DeviceLostError("CUDA error: an illegal memory access was encountered")


def run_lost_models(*arguments: Any) -> None:
    """As processes.run_models() in a process of its own, with that model."""
    lost: Any = Lost()
    questions.load_each = lambda *_: {"any:1": Loaded(lost, 32, "torch")}
    processes.run_models(*arguments)


def test_a_lost_gpu_ends_its_process_with_the_reason(tmp_path: Path) -> None:
    task = TASKS["classification"]
    ours, theirs = processes.SPAWN.Pipe(duplex=False)
    wanted = [Wanted("classification", task, "any:1", task.options())]
    arguments = (wanted, "cuda:0", None, tmp_path / "socket", theirs)
    process = processes.SPAWN.Process(target=run_lost_models, args=arguments, daemon=True)
    process.start()
    theirs.close()
    assert ours.recv() == {"any:1": processes.Facts(32, "torch")}

    async def ask() -> None:
        caller = frames.Caller(task, tmp_path / "socket", seconds=None)
        with pytest.raises(VisionError, match="cannot answer now"):
            await caller.predict("any:1", [Item(np.zeros((2, 2, 3), np.uint8), (2, 2), task.options())])

    asyncio.run(ask())
    assert ours.recv() == "cuda:0: CUDA error: an illegal memory access was encountered."
    process.join()
    assert process.exitcode == 1


@pytest.mark.parametrize("unread", [True, False])
def test_a_worker_whose_command_has_ended_ends_without_a_word(unread: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """A killed command's end of the pipe is reset or closed, perhaps before the command is seen to have ended."""
    ours, theirs = processes.SPAWN.Pipe()
    worker = processes.SPAWN.Process(target=processes.ask, args=(theirs,), daemon=True)
    worker.start()
    theirs.close()
    assert ours.poll(60)
    if not unread:
        ours.recv()
    ours.close()
    worker.join()
    assert worker.exitcode == 1
    assert capfd.readouterr().err == ""
