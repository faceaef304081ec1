"""Who may import whom, as the house is drawn, and what must never be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.servers import ROOT

FORBIDDEN: dict[str, tuple[str, ...]] = {
    "vision/models": (
        "bentoml",
        "_bentoml_sdk",
        "starlette",
        "vision.http",
        "vision.runners",
        "vision.store",
        "service",
    ),
    "vision/models/engine.py": ("transformers", "vision.schemas", "vision.store"),
    "vision/models/classifier.py": ("torch", "transformers"),
    "vision/models/captioner.py": ("torch", "transformers"),
    "vision/tasks/captioning/beam_search.py": ("torch", "transformers", "vision.schemas"),
    "vision/models/detector.py": ("torch", "transformers"),
    "vision/models/nanodet.py": ("torch", "transformers"),
    "vision/models/pixels.py": ("torch", "transformers", "cv2"),
    "vision/models/yolo.py": ("torch", "transformers", "ultralytics"),
    "vision/images.py": ("bentoml", "starlette", "torch", "transformers", "vision.http", "vision.store", "service"),
    "vision/core/schemas.py": ("bentoml", "starlette", "torch", "vision.images", "vision.http", "service"),
    "vision/errors.py": ("bentoml", "starlette", "torch", "pydantic", "vision", "service"),
    "vision/settings.py": ("bentoml", "starlette", "torch", "vision.http", "service"),
    "vision/store.py": ("starlette", "torch", "vision.http", "vision.models", "service"),
    "vision/http.py": ("torch", "transformers", "vision.models", "vision.runners", "vision.store", "service"),
    "vision/door.py": ("torch", "vision.images", "vision.models", "vision.runners", "vision.store", "service"),
    "vision/wire.py": ("bentoml", "torch", "vision.http", "vision.door", "vision.runners", "service"),
    "vision/keys.py": ("bentoml", "starlette", "vision.http", "service"),
    "vision/decoders.py": ("bentoml", "starlette", "torch", "vision.settings", "vision.http", "service"),
    "vision/decode_process.py": ("bentoml", "starlette", "torch", "vision.settings", "vision.http", "service"),
    "vision/supervisor.py": ("starlette", "torch", "vision.http", "vision.door", "service"),
    "vision/coalesce.py": ("bentoml", "starlette", "torch", "vision.http", "vision.runners", "service"),
    "vision/bento/hop.py": ("bentoml", "starlette", "torch", "vision.http", "vision.door", "vision.runners", "service"),
    "vision/openapi.py": ("torch", "transformers", "vision.models", "vision.runners", "service"),
    "vision/bento/runners.py": ("starlette", "vision.http", "service"),
    "train_and_save": ("starlette", "vision.http", "vision.runners", "service"),
    "service.py": ("torch", "transformers"),
    "": ("pickle", "requests", "urllib.request"),
}


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    place = ROOT / room
    product = [ROOT / "service.py", *(ROOT / "vision").rglob("*.py"), *(ROOT / "train_and_save").rglob("*.py")]
    files = [file for file in product if file == place or place in file.parents]
    assert files
    for file in files:
        for name in imports(file):
            for forbidden in FORBIDDEN[room]:
                assert name != forbidden, f"{file} imports {name}"
                assert not name.startswith(f"{forbidden}."), f"{file} imports {name}"


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
from vision.core import predictor as models
from vision.core.schemas import Item
from vision.tasks import TASKS
folder = Path(sys.argv[1])
card = store.verify(folder)
model = models.load(folder, card, models.pick_device("cpu"))
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
