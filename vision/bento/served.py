"""The models that are served: which the settings name, and the public process's way to each of them."""

from collections.abc import Sequence
from functools import cache, partial

from vision import metrics
from vision.bento import store
from vision.bento.hop import Caller
from vision.bento.runners import GATHER, MOST, method
from vision.core.errors import Code, VisionError
from vision.core.look import ServedModel
from vision.core.queues import Queue
from vision.core.schemas import Card
from vision.core.task import Task
from vision.insights.pictures import QUALITY
from vision.insights.rules import Rules
from vision.settings import PREFIX, SETTINGS
from vision.tasks import TASKS
from vision.tasks.features import feature


@cache  # what is saved later is not what the runners loaded
def cards(task: str) -> list[Card]:
    """The cards of a task's models, the default first."""
    return [store.read_card(store.folder(tag)) for tag in SETTINGS.models(task)]


def served(task: Task, caller: Caller) -> list[ServedModel]:
    """A task's models behind their runner, each with a queue of its own."""
    models = []
    for index, card in enumerate(cards(task.name)):
        tag = f"{card.name}:{card.version}"
        depth = metrics.QUEUE_IMAGES.labels(task.name, tag)
        call = partial(caller.predict, method(index))
        queue = Queue(call, MOST[task.name], task.beside, depth.set, GATHER[task.name])
        models.append(ServedModel(task, card, task.load_shrink(store.folder(tag)), queue))
        metrics.MODEL_INFO.labels(task.name, card.name, card.version).set(1)
    return models


def find(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """Return the model that `name` or `name:version` means; the first has no need of a name.

    Raises VisionError: invalid_option, with the names there are.
    """
    for model in models:
        if name in (None, model.card.name, model.tag):
            return model
    known = ", ".join(model.tag for model in models)
    raise VisionError(Code.INVALID_OPTION, f"model: {models[0].task.name} has no {name!r}; it has {known}.")


@cache
def rules() -> Rules:
    """The rules for tips, less what is only for models that are not served.

    Raises ValueError where a rule needs a model that is not served.
    """
    there = SETTINGS.insights_rules
    if there.sunglasses and there.sunglasses.where_served and not _is_served(there.sunglasses.feature):
        there = there.without_sunglasses()
    for word, needed_by in there.features.items():
        if not _is_served(word):
            known = ", ".join(f"{task}:{card.name}" for task in TASKS for card in cards(task))
            raise ValueError(
                f"{PREFIX}INSIGHTS_RULES: {needed_by} needs {word}, which is not served; served are {known}."
            )
    return there


def _is_served(word: str) -> bool:
    if word == QUALITY:
        return True
    try:
        task, model, _ = feature(word)
    except ValueError:
        return False
    names = {name for card in cards(task.name) for name in (None, card.name, f"{card.name}:{card.version}")}
    return model in names
