"""What is asked of each picture: features and options in words, and the models behind them, loaded here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from bulk import UserError
from bulk.cache import PIXELS_KEY
from vision.bento import store
from vision.core import device, engine
from vision.core.errors import VisionError
from vision.core.look import MAX_BATCH, ServedModel, in_process
from vision.core.predictor import Predictor, pick_device, predict_each
from vision.core.schemas import Card, Item, Options
from vision.core.subject import HEAD
from vision.core.task import Task
from vision.tasks.features import features

GPU_BATCH = 32
"""As the service's runners do."""


@dataclass(frozen=True)
class Wanted:
    """A question in words: a feature's word, its task, the saved model that answers, and the options."""

    word: str
    task: Task
    tag: str
    options: Options
    head_of: str | None = None
    """The word of the detector's question, where this one is about the head of the main subject."""

    @property
    def wide(self) -> Options:
        """The options with which the model is asked: its answer is kept, and narrowed to what is wanted."""
        return self.task.widen(self.options)


@dataclass(frozen=True)
class Asked:
    """A question with a model that can be asked. key: all that the answer depends on but the picture."""

    wanted: Wanted
    model: ServedModel
    key: str


@dataclass(frozen=True)
class Loaded:
    """A model in this process. most: pictures that it is given at once; runs: what runs it, with its precision."""

    model: Predictor
    most: int
    runs: str


def wanted(words: Sequence[str], options: Mapping[str, Any], models: Mapping[str, str]) -> list[Wanted]:
    """Read features as /analyze does: `classification`, `classification:dogs`; models: each task's usual one.

    Raises UserError: no such task, model or option.
    """
    try:
        found = features(words)
    except ValueError as error:
        raise UserError(f"--features: {error}") from error
    asked = [
        Wanted(word, task, _resolve(name or models[task.name], task), _options(task, options), head_of)
        for word, (task, name, head_of) in found.items()
    ]
    known_options = {name for one in asked for name in type(one.options).model_fields}
    if unused := options.keys() - known_options:
        raise UserError(f"{flag(min(unused))} is no option of {', '.join(words)}.")
    for index, one in enumerate(asked):
        if same := [other for other in asked[:index] if (other.tag, other.head_of) == (one.tag, one.head_of)]:
            raise UserError(f"--features: {same[0].word!r} and {one.word!r} mean the same model.")
    return asked


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def cards(wanted: Sequence[Wanted]) -> dict[str, Card]:
    """Return the card of each question's model, by the question's word."""
    return {one.word: store.read_card(store.folder(one.tag)) for one in wanted}


def load_all(wanted: Sequence[Wanted], where: str, engines: Path | None) -> list[Asked]:
    """Load the model of each question, once where several ask the same. Raises UserError."""
    loaded = load_each(wanted, where, engines)
    served = {
        one.tag: in_process(one.task, loaded[one.tag].model, store.folder(one.tag), loaded[one.tag].most)
        for one in wanted
    }
    return asked(wanted, served, {tag: one.runs for tag, one in loaded.items()})


def asked(wanted: Sequence[Wanted], served: Mapping[str, ServedModel], runs: Mapping[str, str]) -> list[Asked]:
    """Join each question with its model, and with the key of its answer; about a head, also that of its detector."""
    keys = {}
    for one in wanted:
        options = one.wide.model_dump_json(exclude_defaults=True)
        keys[one.word] = f"{PIXELS_KEY} {one.tag} {runs[one.tag]} {options}"
    return [
        Asked(
            one,
            served[one.tag],
            f"{keys[one.word]} {HEAD} {keys[one.head_of]}" if one.head_of else keys[one.word],
        )
        for one in wanted
    ]


def load_each(wanted: Sequence[Wanted], where: str, engines: Path | None) -> dict[str, Loaded]:
    """Load each model that is asked, by its tag, and try it. Raises UserError."""
    return {
        tag: load(one, _device(where, one.task.name), engines) for tag, one in {one.tag: one for one in wanted}.items()
    }


def _device(name: str, task: str) -> str:
    try:
        return device.wanted(name, task)
    except ValueError as error:
        raise UserError(f"--device: {error}.") from error


def load(asked: Wanted, where: str, engines: Path | None) -> Loaded:
    """Load a question's model on "auto", "cpu" or a GPU, and try it. Raises UserError."""
    folder = store.folder(asked.tag)
    try:
        card = store.verify(folder)
        place = pick_device(where)
        planned = device.planned(place, folder, card, engines)
        model = asked.task.load(folder, card, planned)
    except (ValueError, OSError) as error:
        raise UserError(f"{asked.word}: {asked.tag} cannot be loaded: {error}") from error
    most = MAX_BATCH if place == "cpu" else GPU_BATCH
    _try(model, asked, most)
    return Loaded(model, most, _engine(planned, folder))


def _try(model: Predictor, asked: Wanted, most: int) -> None:
    """Predict on grey pictures: what no picture can be asked is told now; a GPU gets ready for its sizes of batches."""
    grey = np.full((480, 640, 3), 127, np.uint8)
    [result] = predict_each(model, [Item(grey, (640, 480), asked.options)])
    if isinstance(result, VisionError):
        raise UserError(f"{asked.word}: {result.message}")
    sizes = [2] if most == MAX_BATCH else [2**power for power in range(1, most.bit_length())]
    for size in sizes:
        predict_each(model, [Item(grey, (640, 480), asked.wide)] * size)


def _engine(planned: device.Device, folder: Path) -> str:
    """Name what runs a model, with its precision."""
    if planned.how is not None:
        return f"torch {planned.how}"
    return "openvino float32" if engine.has_graph(folder, planned.name) else "torch float32"


def _resolve(name: str, task: Task) -> str:
    tag = store.resolve(name)
    if tag is None:
        raise UserError(f"The store has no {name}. `python -m train_and_save starter` saves the starters.")
    card = store.read_card(store.folder(tag))
    if card.task != task.name:
        raise UserError(f"{name} is a model for {card.task}, not for {task.name}.")
    return tag


def _options(task: Task, given: Mapping[str, Any]) -> Options:
    try:
        return task.options.model_validate({name: given[name] for name in task.options.model_fields if name in given})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{flag(str(problem['loc'][0]))}: {problem['msg']}.") from error
