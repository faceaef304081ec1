"""`make score` on a machine without a GPU: the light install and requirements-bulk.lock, no PyTorch."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from testkit import light
from testkit.servers import OFFLINE, ROOT


def test_a_folder_is_scored_without_torch(home: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    python = light.install(tmp_path_factory.mktemp("bulk"), "requirements-bulk.lock") / "python"
    command: list[str | Path] = [python, "-m", "bulk", "score", "examples", "--out", tmp_path / "out", "--no-cache"]
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["versions"].keys() >= {"openvino", "pyarrow"}
    assert "torch" not in manifest["versions"]
