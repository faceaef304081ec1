"""The light install, without PyTorch, in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from testkit.servers import ROOT

UV = Path(sys.executable).with_name("uv")
OFFLINE = ("error sending request", "Failed to fetch", "Could not connect", "dns error", "Connection refused")


def uv(*arguments: str | Path) -> str:
    """Run uv; leave the test out where no registry can be reached."""
    run = subprocess.run([UV, *arguments], cwd=ROOT, capture_output=True, text=True)
    if run.returncode != 0:
        if any(reason in run.stderr for reason in OFFLINE):
            pytest.skip("no package registry can be reached")
        pytest.fail(f"uv {arguments}: {run.stderr[-3000:]}")
    return run.stdout


def install(folder: Path, lock: str = "requirements-light.lock") -> Path:
    """Install a lock file into a new environment; return the folder of its programs."""
    programs = folder / "bin"
    uv("venv", "--quiet", "--python", sys.executable, folder)
    options = ("--quiet", "--require-hashes", "--no-deps", "--python", programs / "python")
    uv("pip", "install", *options, "-r", lock)
    return programs
