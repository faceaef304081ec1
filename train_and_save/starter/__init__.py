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
    return [
        _save(CLASSIFICATION),
        # the captioner sees through the classifier's network, which ships only once
        _save(CAPTIONING, CLASSIFICATION),
        _save(DETECTION),
    ]


def _save(*parts: Path) -> str:
    card, version = store.read_card(parts[0]), store.version(*parts)
    tag = f"{card.name}:{version}"
    if store.is_saved(card, version) and not (store.folder(tag) / OLD_GRAPH).is_file():
        return tag
    # Imported late: a start with all models saved should not wait for torch.
    from train_and_save.graphs import export
    from train_and_save.starter import convert

    with TemporaryDirectory() as place:
        folder = Path(place)
        if card.task == "captioning":
            convert.assemble_captioner(CAPTIONING, CLASSIFICATION, folder)
        else:
            shutil.copytree(parts[0], folder, dirs_exist_ok=True)
        return store.save(folder, export.add_graph(folder, card), version)
