"""The starters: small models that ship with the code, answer offline and know photographs."""

from pathlib import Path
from tempfile import TemporaryDirectory

from train_and_save.starter import assemble
from train_and_save.starter.assemble import CAPTIONING, CLASSIFICATION, DETECTION, GRAPHS, STARTER
from vision.bento import store

__all__ = ["CAPTIONING", "CLASSIFICATION", "DETECTION", "STARTER", "save"]


def save() -> list[str]:
    """Put the starters into the model store, where they are missing or damaged; return their tags."""
    return [_save(task) for task in ("classification", "captioning", "detection")]


def _save(task: str) -> str:
    card = store.read_card(STARTER / task)
    parts = assemble.parts(task)
    version = store.version(*parts, *(part / GRAPHS for part in parts))
    if store.is_saved(card, version):
        return f"{card.name}:{version}"
    # Imported late: a start with all models saved should not wait for OpenVINO.
    from train_and_save.graphs import streams

    with TemporaryDirectory() as place:
        folder = Path(place)
        assemble.model(task, folder)
        assemble.graphs(task, folder)
        engines = card.engines | streams.choose(folder)
        return store.save(folder, card.model_copy(update={"engines": engines}), version)
