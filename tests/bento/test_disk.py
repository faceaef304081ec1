"""A full disk where the metrics lie: pictures are answered, metrics are lost, one line says so."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import mmap_dict

from testkit.photographs import PHOTOS
from testkit.servers import Served, metric, served, until
from vision.metrics import Samples

BUS = PHOTOS["bus"].read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk: Path) -> None:
    def write() -> None:
        with (disk / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(OSError, match="No space"):
        write()


def samples(file: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in mmap_dict.MmapedDict.read_all_values_from_file(str(file))}


def test_samples_are_kept_in_memory_from_when_the_disk_is_full(disk: Path) -> None:
    file = disk / "counter_1.db"
    kept = Samples(str(file))
    kept.write_value("first", 1.0, 0.0)
    fill(disk)
    for number in range(5000):  # past what was claimed at first
        kept.write_value(f"sample {number}", float(number), 0.0)
    assert samples(file)["first"] == 1
    assert kept.read_value("first") == (1, 0)
    assert kept.read_value("sample 4999") == (4999, 0)
    late = Samples(str(disk / "gauge_1.db"))
    late.write_value("late", 2.0, 0.0)
    assert late.read_value("late") == (2, 0)
    assert not (disk / "gauge_1.db").exists()
    for one in (kept, late):
        one.close()


def test_a_full_disk_costs_the_metrics_and_nothing_else(home: Path, disk: Path) -> None:
    (disk / "models").symlink_to(home / "models")
    with served(disk) as running:
        workers = running.workers()
        fill(disk)
        ask_everything(running)
        assert running.workers() == workers
        killed = workers["classification"]
        killed.kill()

        def is_back() -> bool:
            return bool(httpx.get(f"{running.url}/readyz", timeout=30).json()["ready"]) and not killed.is_running()

        asyncio.run(until(is_back))
        ask_everything(running)
        told = [json.loads(line)["message"] for line in running.lines if "metrics of process" in line]
        assert len(told) == len(set(told))
        replaced = running.workers()["classification"].pid
        assert f"metrics of process {replaced} are lost from here on: No space left on device" in told
        assert metric(running, "vision_images_total", outcome="ok", task="detection") > 0


def ask_everything(running: Served) -> None:
    for endpoint in ("/classify", "/caption", "/detect", "/analyze"):
        assert httpx.post(f"{running.url}{endpoint}", files={"images": BUS}, timeout=60).status_code == 200
        assert httpx.post(f"{running.url}{endpoint}", files={"images": b"broken"}).status_code == 415
        assert httpx.post(f"{running.url}{endpoint}", json={}).status_code == 400
        assert httpx.get(f"{running.url}{endpoint}").status_code == 405
    assert httpx.get(f"{running.url}/nowhere").status_code == 404
    assert httpx.get(f"{running.url}/metrics").status_code == 200
