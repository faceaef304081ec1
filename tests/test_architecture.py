"""Who may import whom: a row for each file of the product, and what no row may say."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from testkit.servers import ROOT

ALLOWED = (ROOT / "tests" / "architecture.txt").read_text()
"""A row for each file: what it imports of the product, by room, and of packages, by name; late imports count, too."""

NEVER = {
    # of every file
    "": "pickle requests urllib.request service tests testkit benchmarks",
    "vision/core/": "bulk tasks bento api settings metrics train_and_save bentoml circus starlette uvicorn",
    "vision/insights/": "bulk tasks bento api settings metrics train_and_save bentoml starlette PIL numpy",
    "vision/tasks/": "bulk bento api settings metrics train_and_save bentoml circus starlette uvicorn",
    "vision/bento/": "api bulk train_and_save torch transformers",
    "vision/api/": "bulk train_and_save bentoml circus torch transformers openvino",
    "vision/settings.py": "bento api metrics train_and_save bentoml starlette",
    "bulk/": "api metrics train_and_save bentoml starlette torch transformers",
    "train_and_save/": "api bulk starlette",
    "service.py": "bulk train_and_save circus torch transformers openvino uvicorn",
}
"""What a row may not say, by the place that it is in."""

EXCEPT = {"vision/api/wire.py": "uvicorn"}

SPECS = "vision/tasks/*/spec.py"
"""Words only: every process reads them."""


def product() -> Iterator[Path]:
    yield ROOT / "service.py"
    for place in ("vision", "bulk", "train_and_save"):
        yield from sorted((ROOT / place).rglob("*.py"))


def imports(file: Path, late: bool = True) -> set[str]:
    """Full names of what a file imports; without late ones, what it imports when it is itself imported."""
    tree = ast.parse(file.read_text())
    nodes = ast.walk(tree) if late else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def word(name: str) -> str | None:
    """A row's word for an import: a room of the product, or a package; None for Python's own."""
    first, *rest = name.split(".")
    if first == "vision" and rest:
        return rest[0]
    if first in ("_bentoml_sdk", "_bentoml_impl"):
        return "bentoml"
    if first == "bentoml" and "circus" in rest:
        return "circus"
    if first == "urllib" and rest[:1] == ["request"]:
        return "urllib.request"
    if first in sys.stdlib_module_names and first != "pickle":
        return None
    return first


@cache
def rows() -> dict[str, set[str]]:
    return {str(file.relative_to(ROOT)): {one for name in imports(file) if (one := word(name))} for file in product()}


def test_each_file_imports_what_its_row_says() -> None:
    """To write the rows again: python -m tests.test_architecture > tests/architecture.txt; reviewers read the diff."""
    assert as_text(rows()) == ALLOWED


@pytest.mark.parametrize("place", NEVER)
def test_no_row_says_what_its_place_forbids(place: str) -> None:
    for file, said in rows().items():
        if file.startswith(place):
            assert not said & set(NEVER[place].split()) - {EXCEPT.get(file)}, file


def test_the_words_of_a_task_load_no_library() -> None:
    for file in ROOT.glob(SPECS):
        known = {one for name in imports(file, late=False) if (one := word(name))}
        assert known == {"core", "pydantic"}, file


def test_no_import_goes_in_a_circle() -> None:
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in product()
    }
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imports(file, late=False)}
        & files.keys()
        for module, file in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {error.args[1]}")


def as_text(said: dict[str, set[str]]) -> str:
    return "".join(f"{file}: {' '.join(sorted(words))}".rstrip() + "\n" for file, words in said.items())


def test_the_public_process_and_a_start_with_saved_models_load_no_torch(home: Path) -> None:
    """Five processes import service.py, and `make serve` runs train_and_save each time: both must stay light."""
    for module in ("service", "train_and_save.__main__", "train_and_save.bring.hub"):
        code = f"import {module}, sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert run.stdout.strip() == "[]"


def test_the_starters_that_run_on_a_graph_load_no_torch(home: Path) -> None:
    """Importing it would cost their runners most of their start and memory."""
    code = """
import sys
from pathlib import Path
import numpy as np
from vision.bento import store
from vision.core.device import CPU
from vision.core.schemas import Item
from vision.tasks import TASKS
folder = Path(sys.argv[1])
card = store.verify(folder)
model = TASKS[card.task].load(folder, card, CPU)
model.predict([Item(np.full((48, 64, 3), 127, np.uint8), (64, 48), TASKS[card.task].options())])
print([name for name in ("torch", "torchvision", "transformers", "timm") if name in sys.modules])
"""
    folders = [graph.parent for graph in (home / "models").rglob("openvino.xml")]
    assert len(folders) == 3
    for folder in folders:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, folder], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert run.stdout.strip() == "[]"


if __name__ == "__main__":
    sys.stdout.write(as_text(rows()))
