"""The README's lines on reading results do what they say."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bulk.rows import Parquet, schema
from testkit.servers import ROOT
from vision.tasks import TASKS


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with results/, of two pictures and one that failed."""

    def row(id: str, label: str, sharpness: float) -> dict[str, Any]:
        answer = {"labels": [{"label": label, "score": 0.5}], "model": {"name": "m", "version": "1", "source": "s"}}
        quality = {"brightness": 0.5, "contrast": 0.2, "sharpness": sharpness, "hash": "0" * 16}
        return {"id": id, "uri": id, "status": "ok", "quality": quality, "classification": answer}

    failed = {"id": "3", "uri": "3", "status": "error", "error": {"code": "empty_image", "message": "none"}}
    format = Parquet(schema({"classification": TASKS["classification"].result}, None))
    (tmp_path / "results").mkdir()
    part = tmp_path / "results" / "part-00000.parquet"
    part.write_bytes(format.encode([row("1", "bus", 100), row("2", "bus", 300), failed]))
    assert pq.read_metadata(part).num_rows == 3
    return tmp_path


@pytest.mark.served
def test_duckdb_polars_and_pandas_read_results(results: Path) -> None:
    [code] = re.findall(r"```python\n(import duckdb.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = subprocess.run([sys.executable, "-c", code], cwd=results, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["[('bus', 2)]", "1", "200.0", ""]
