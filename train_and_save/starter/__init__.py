"""The starters: small models that ship with the code, answer offline and know photographs."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from vision.bento import store

STARTER = Path(__file__).parent
CLASSIFICATION, CAPTIONING, DETECTION = (STARTER / task for task in ("classification", "captioning", "detection"))

GRAPHS = "graphs"
"""Beside a starter's other files: its OpenVINO graphs, as graphs.py writes them."""


def save() -> list[str]:
    """Put the starters into the model store, where they are missing or damaged; return their tags."""
    return [_save(shipped) for shipped in (CLASSIFICATION, CAPTIONING, DETECTION)]


def _save(shipped: Path) -> str:
    card, version = store.read_card(shipped), store.version(shipped, shipped / GRAPHS)
    if store.is_saved(card, version):
        return f"{card.name}:{version}"
    with TemporaryDirectory() as place:
        folder, engines = Path(place), card.engines
        copy(shipped, folder)
        shutil.copytree(shipped / GRAPHS, folder, dirs_exist_ok=True)
        if any(folder.glob("*.xml")):  # a GPU needs none, so a tree that is sent to one may lack them
            # Imported late: a start with all models saved should not wait for OpenVINO.
            from train_and_save.graphs import streams

            engines = engines | streams.choose(folder)
        return store.save(folder, card.model_copy(update={"engines": engines}), version)


def copy(shipped: Path, folder: Path) -> None:
    """Copy a starter without its graphs: an ordinary Hugging Face folder."""
    for file in shipped.glob("*.*"):
        shutil.copyfile(file, folder / file.name)
