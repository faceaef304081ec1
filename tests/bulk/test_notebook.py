"""The notebook in examples/ runs from its first cell to its last, and answers its question."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from testkit.servers import OFFLINE, ROOT


def test_the_notebook_answers_its_question(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"BENTOML_HOME": home, "RESULTS": tmp_path, "XDG_CACHE_HOME": tmp_path}
    for name, value in {**OFFLINE, **places}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.delenv("PHOTOS", raising=False)
    notebook = nbformat.read(ROOT / "examples" / "explore.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # none is kept: they would tell of one machine
    done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": ROOT / "examples"}}).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert re.fullmatch(r"2 of 4 pictures show a person at min_score 0\.5: 50% \(15% to 85%\)\n", outputs[-1]["text"])
