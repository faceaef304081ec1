"""Features in words: `classification`, `classification:dogs`, and `classification@head`: of the main subject's head."""

from collections.abc import Iterable
from typing import NamedTuple

from vision.core.subject import HEAD
from vision.core.task import Task
from vision.tasks import TASKS
from vision.tasks.detection.spec import DETECTION


class Feature(NamedTuple):
    task: Task
    model: str | None
    """`name` or `name:version`; None is the task's first model."""
    head_of: str | None
    """The feature whose objects tell where the head is; None is the whole picture."""


def feature(word: str) -> Feature:
    """Read a word. Raises ValueError, with the words that are known."""
    whole = word.removesuffix(HEAD)
    name, colon, model = whole.partition(":")
    head = whole != word
    if name not in TASKS or (colon and not model) or (head and name == DETECTION.name):
        known = ", ".join(f"{task}, {task}:MODEL" for task in TASKS)
        raise ValueError(f"{word[:200]!r} is none; known are {known}.")
    return Feature(TASKS[name], model or None, DETECTION.name if head else None)


def features(words: Iterable[str]) -> dict[str, Feature]:
    """Read words that are asked together, each once. Raises ValueError, also where one needs another beside it."""
    found = {word: feature(word) for word in words}
    for word, one in found.items():
        if one.head_of and one.head_of not in found:
            raise ValueError(f"{word[:200]!r} needs {one.head_of!r} beside it.")
    return found
