"""What a task is: a kind of question, the words of its contract, and where its models come from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vision.core.device import Device
from vision.core.pixels import Shrink
from vision.core.predictor import Predictor
from vision.core.schemas import Card, Marks, Options


def _as_asked(options: Options) -> Options:
    return options


def _whole(result: Any, options: Any) -> Any:
    return result


@dataclass(frozen=True)
class Task:
    """A kind of question; its endpoint, settings, runner, metrics, documents and `/analyze` feature follow from it."""

    name: str
    """The feature's name: a noun, as in `classification`."""
    endpoint: str
    """The path without its slash: a verb, as in `classify`."""
    summary: str
    """What the endpoint does, in a sentence."""
    options: type[Options]
    result: type[BaseModel]
    """What a model says of a picture; has a field `model` (schemas.Model)."""
    starter: str
    """Name of the model that serves where no setting names another."""
    load: Callable[[Path, Card, Device], Predictor]
    """Folder of a saved model, its card, where it is to run -> the model. Imports its libraries when called."""
    load_shrink: Callable[[Path], Shrink]
    """Folder of a saved model -> what makes its pixels of a picture, without loading the model."""
    marks: Callable[[Any], Marks] = lambda _: Marks()
    """A result -> what of it is drawn on the picture, where that is asked."""
    beside: int = 8
    """Pictures that a model takes while it works on a batch: it has some when the batch is done, and a small request
    never waits for all of a large one."""
    widen: Callable[[Any], Options] = _as_asked
    """Options -> those whose answer holds what these ask for, and what others would: the ones that bulk keeps."""
    narrow: Callable[[Any, Any], Any] = _whole
    """Such an answer, options -> what the model answers when it is asked with these."""
