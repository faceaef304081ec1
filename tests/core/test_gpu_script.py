"""`make gpu`, with small models and on the CPU: it runs to its end, and leaves nothing out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import failure
from testkit.servers import OFFLINE, ROOT, another

pytestmark = pytest.mark.served


def test_the_script_measures_models_bare_and_over_http(
    home: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = another(home, tmp_path_factory)
    command = ["-m", "benchmarks.gpu", "--tiny", "--families", "vit-base", "--compile", "--seconds", "900"]
    run = subprocess.run(
        [sys.executable, *command, "--home", own, "--out", tmp_path],
        cwd=ROOT,
        env={**os.environ, **OFFLINE},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = json.loads((tmp_path / "gpu.json").read_text())
    for name, value in rows.items():
        assert not str(value).startswith(("failed", "left out", "cut")), f"{name}: {value}"
    assert rows["vit-base, eager bfloat16, graphs, images/s, batch 2"] > 0
    assert rows["HTTP, JPEG x 1, 4 clients"]["images/s"] > 0
    assert rows["HTTP, raw x 16, 1 clients"]["failed"] == 0
    assert rows["HTTP, half load, JPEG x 1"]["p99 ms"] > 0
    assert len(rows["targets"]) >= 5
    assert run.stdout.splitlines()[-len(rows["targets"]) :] == rows["targets"]


def test_a_part_that_crashes_says_how_and_where() -> None:
    code = "import faulthandler; print('  12.3 s  vit-base, compiled  89.9', flush=True); faulthandler._sigsegv()"
    crash = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True)
    said = failure(crash.returncode, crash.stdout + crash.stderr)
    assert said.startswith("failed: ended by SIGSEGV: Fatal Python error: Segmentation fault | File ")
    raised = subprocess.run([sys.executable, "-c", "raise ValueError('why')"], capture_output=True, text=True)
    said = failure(raised.returncode, raised.stderr + "  12.3 s  vit-base, compiled  89.9\n")
    assert said.startswith("failed: ended with status 1: ")
    assert said.endswith("ValueError: why")
