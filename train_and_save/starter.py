"""The starters: small models that ship with the code, answer offline and know photographs."""

from pathlib import Path
from tempfile import TemporaryDirectory

from vision import store

STARTER = Path(__file__).parent / "starter"
CLASSIFICATION, CAPTIONING, DETECTION = (STARTER / task for task in ("classification", "captioning", "detection"))


def save() -> list[str]:
    """Put the starters into the model store, where they are missing; return their tags."""
    return [
        store.save(CLASSIFICATION, store.read_card(CLASSIFICATION), store.version(CLASSIFICATION)),
        _save_captioning(),
        store.save(DETECTION, store.read_card(DETECTION), store.version(DETECTION)),
    ]


def _save_captioning() -> str:
    """The captioner sees through the classifier's network, which ships only once: both make one model."""
    card, version = store.read_card(CAPTIONING), store.version(CAPTIONING, CLASSIFICATION)
    if store.has(f"{card.name}:{version}"):
        return f"{card.name}:{version}"
    # Imported late: a start with all models saved should not wait for torch.
    from train_and_save import convert

    with TemporaryDirectory() as folder:
        convert.assemble_captioner(CAPTIONING, CLASSIFICATION, Path(folder))
        return store.save(Path(folder), card, version)
