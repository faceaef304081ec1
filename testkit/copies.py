"""Models that are there more than once: the starter classifier under other names, to be told apart by its labels."""

import os
import subprocess
import sys
from pathlib import Path

from testkit.servers import OFFLINE, ROOT

SAVE = """
import json, shutil, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from vision.bento import store
source, name, first, graph = Path(sys.argv[1]), *sys.argv[2:]
with TemporaryDirectory() as place:
    folder = Path(place)
    for file in source.iterdir():
        if file.name not in ("card.json", "model.yaml"):
            shutil.copy(file, folder)
    config = json.loads((folder / "openvino.json").read_text())
    config["labels"] = [f"{first}{label}" for label in config["labels"]]
    (folder / "openvino.json").write_text(json.dumps(config))
    if graph:
        (folder / "openvino.xml").write_text(graph)
    card = store.read_card(source).model_copy(update={"name": name})
    print(store.save(folder, card, store.version(folder)))
"""


def save_copy(home: Path, name: str, first: str = "", graph: str = "") -> str:
    """Save the starter classifier once more; return its tag.

    first: what stands before each of its labels. graph: what stands in its graph's file instead.
    """
    [source] = (home / "models" / "efficientnet-lite0").glob("*/openvino.xml")
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    command = [sys.executable, "-c", SAVE, str(source.parent), name, first, graph]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return run.stdout.strip()
