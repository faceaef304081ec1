"""The starters: small models that ship with the code, answer offline and know photographs."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from vision.bento import store

STARTER = Path(__file__).parent
CLASSIFICATION, CAPTIONING, DETECTION = (STARTER / task for task in ("classification", "captioning", "detection"))

OLD_GRAPH = "openvino_decoder.xml"
"""Beside captioners whose graphs have a form that is no longer read; they are made again."""


def save() -> list[str]:
    """Put the starters into the model store, where they are missing or damaged; return their tags."""
    return [_save(starter) for starter in (CLASSIFICATION, CAPTIONING, DETECTION)]


def _save(starter: Path) -> str:
    card, version = store.read_card(starter), store.version(starter)
    tag = f"{card.name}:{version}"
    if store.is_saved(card, version) and not (store.folder(tag) / OLD_GRAPH).is_file():
        return tag
    # Imported late: a start with all models saved should not wait for torch.
    from train_and_save.graphs import export

    with TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(starter, folder, dirs_exist_ok=True)
        return store.save(folder, export.add_graph(folder, card), version)
