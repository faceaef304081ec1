"""A runner whose GPU is lost ends and is replaced: while the service starts, and later."""

import os
import shutil
import time
from pathlib import Path

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import ROOT, SERVE, another, served

LOSES = """

from vision.core.engine import DeviceLostError

_predict = Classifier.predict


def predict(self, items):
    try:
        Path(%r).unlink()
    except FileNotFoundError:
        return _predict(self, items)
    raise DeviceLostError("an illegal memory access was encountered")


Classifier.predict = predict
"""
"""Once for each time that a file is put there."""


def test_a_runner_whose_gpu_is_lost_is_replaced(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lost = tmp_path / "lost"
    shutil.copy(ROOT / "service.py", tmp_path)
    shutil.copytree(ROOT / "vision", tmp_path / "vision", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "vision" / "tasks" / "classification" / "classifier.py").open("a") as file:
        file.write(LOSES % os.fspath(lost))
    lost.touch()
    with served(another(home, tmp_path_factory), ["env", "-C", str(tmp_path), *SERVE]) as running:
        [line] = [line for line in running.lines if "is lost: an illegal memory access" in line]
        assert "another takes its place" in line
        photo = PHOTOS["bus"].read_bytes()
        before = running.workers()["classification"]
        lost.touch()
        answer = httpx.post(f"{running.url}/classify", files={"images": photo}, timeout=90)
        assert answer.status_code in (503, 504)
        assert answer.json()["error"]["retryable"]
        deadline = time.monotonic() + 60
        while httpx.post(f"{running.url}/classify", files={"images": photo}, timeout=90).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert running.workers()["classification"].pid != before.pid
        assert sum("is lost: an illegal memory access" in line for line in running.lines) == 2
