"""The BentoML model store: save a folder under a name and a version made of its contents; open and verify it."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import NotFound

from vision.core.schemas import Card

CARD = "card.json"


def check_home() -> None:
    """Make the folder that the store lies in. Raises ValueError, with the way out, where that cannot be done."""
    try:
        BentoMLContainer.bentoml_home.get()
    except OSError as error:
        raise ValueError(f"BentoML's folder cannot be used ({error}): name another in BENTOML_HOME.") from error


def version(*folders: Path) -> str:
    """Twelve hex digits made of the files' names and contents: the same files are the same version everywhere."""
    lines = [f"{name} {value}\n" for folder in folders for name, value in _digests(folder).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def save(folder: Path, card: Card, version: str) -> str:
    """Copy a folder's files into the store as `<card.name>:<version>` and return that tag.

    Where the store has them already, whole and with the same card, nothing is written.
    """
    tag = f"{card.name}:{version}"
    card = card.model_copy(update={"version": version, "sha256": _digests(folder)})
    if has(tag):
        if _verified(tag) == card:
            return tag
        remove(tag)
    with bentoml.models.create(tag, labels={"task": card.task, "licence": card.licence}) as model:
        for name in card.sha256:
            shutil.copyfile(folder / name, model.path_of(name))
        Path(model.path_of(CARD)).write_text(card.model_dump_json(indent=2))
    return tag


def add(tag: str, files: Sequence[Path], card: Card) -> None:
    """Add files to a saved model, and write its card anew; its version stays, as the model does."""
    there = folder(tag)
    for file in files:
        shutil.copyfile(file, there / file.name)
    digests = {file.name: _digest(there / file.name) for file in files}
    whole = card.model_copy(update={"sha256": card.sha256 | digests})
    new = there / f"{CARD}.new"
    new.write_text(whole.model_dump_json(indent=2))
    new.replace(there / CARD)


def is_saved(card: Card, version: str) -> bool:
    """Whether the store has this version whole, its engines measured, and with a card that says the same.

    The saved card may tell more: what was measured since.
    """
    tag = f"{card.name}:{version}"
    saved = _verified(tag) if has(tag) else None
    found = {"version", "engines", "sha256", "metrics"}
    if saved is None or not saved.engines or not card.metrics.items() <= saved.metrics.items():
        return False
    return saved.model_dump(exclude=found) == card.model_dump(exclude=found)


def saved() -> list[tuple[str, Card]]:
    """Every model of ours in the store, as tag and card."""
    return [
        (str(model.tag), read_card(Path(model.path)))
        for model in bentoml.models.list()
        if Path(model.path_of(CARD)).is_file()
    ]


def resolve(tag: str) -> str | None:
    """The full name:version of a tag, the latest when it names none; None when the store has no such model."""
    return str(bentoml.models.get(tag).tag) if has(tag) else None


def size(tag: str) -> int:
    """Bytes of a saved model's files."""
    return sum(file.stat().st_size for file in folder(tag).iterdir())


def remove(tag: str) -> None:
    bentoml.models.delete(tag)


def has(tag: str) -> bool:
    try:
        bentoml.models.get(tag)
    except NotFound:
        return False
    return True


def folder(tag: str) -> Path:
    """Where a saved model's files lie. Raises NotFound, with the way out, when the store has no such model."""
    try:
        return Path(bentoml.models.get(tag).path)
    except NotFound as error:
        way_out = "`python -m train_and_save starter` saves the starters."
        raise NotFound(f"The store has no {tag}. {way_out}") from error


def read_card(folder: Path) -> Card:
    return Card.model_validate_json((folder / CARD).read_text())


def verify(folder: Path) -> Card:
    """Return the card of a saved model after checking each file against its digest.

    Raises ValueError naming the model and the first file that differs.
    """
    card = read_card(folder)
    for name, expected in card.sha256.items():
        if _digest(folder / name) != expected:
            raise ValueError(
                f"{card.name}:{card.version} is damaged: {name} differs from its card. Save the model again."
            )
    return card


def _verified(tag: str) -> Card | None:
    """A saved model's card, or None where its files are damaged."""
    try:
        return verify(folder(tag))
    except (ValueError, OSError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != CARD}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
