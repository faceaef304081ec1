"""The endpoints in words, made from the tasks: what a request may choose, and what a picture's result holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from vision.bento import served
from vision.core.errors import Code, VisionError
from vision.core.schemas import Failure, Options, PictureResult, Quality
from vision.core.subject import HEAD
from vision.core.task import Task
from vision.insights import rules
from vision.insights.pictures import DETECTION, QUALITY
from vision.insights.profile import Insights
from vision.tasks import TASKS
from vision.tasks.features import feature, features


class Drawable(Options):
    render: bool = Field(
        False, description="Put a JPEG of each picture, with what was seen drawn on it, into `rendered`."
    )


class OneModel(Drawable):
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Which of the task's models, `name` or `name:version`; by default the first."
    )


class DrawnResult(PictureResult):
    """Of every endpoint."""

    rendered: str | None = Field(
        None,
        description="The drawn picture where `render` asked for it: a JPEG in base64, at most 1,280 pixels long "
        "and the words below it.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/jpeg"},
    )


class Wanted(NamedTuple):
    """What a request wants to know of each picture, under a word: a task, one of its models, and with which options."""

    word: str
    task: Task
    model: str | None
    """`name` or `name:version`; None is the task's first model."""
    options: Options
    head_of: str | None = None
    """Ask about the head of the main subject among the objects under this word; None asks about the whole picture."""


@dataclass(frozen=True)
class Endpoint:
    name: str
    summary: str
    options: type[Drawable]
    """What a request may choose."""
    result: type[DrawnResult]
    """What it gets for each picture."""
    task: Task | None
    """None asks several."""
    beside: type[BaseModel] | None = None
    """What it says of all pictures together, under its name."""
    least: int = 1
    """Pictures that it takes, at least."""

    def wanted(self, chosen: Any) -> list[Wanted]:
        """Split what a request chose by the models that are asked. Raises VisionError: invalid_option."""
        if self.task:
            return [Wanted(self.task.name, self.task, chosen.model, _of(self.task, chosen))]
        if self.beside:
            return list(_signals())
        return list(_features(chosen))


def _features(chosen: Any) -> Iterator[Wanted]:
    try:
        found = features(chosen.features)
    except ValueError as error:
        several = " Repeat `features`, once for each." if any("," in word for word in chosen.features) else ""
        raise VisionError(Code.INVALID_OPTION, f"features: {error}{several}") from error
    for word, (task, model, head_of) in found.items():
        yield Wanted(word, task, model, _of(task, chosen), head_of)


SIGNALS: dict[str, dict[str, Any]] = {
    "classification": {"top_k": 10, "min_score": rules.LEAST_LABEL},
    "detection": {"min_score": rules.LEAST_OBJECT},
}
"""Options with which insights ask each task, beside its defaults."""


def _signals() -> Iterator[Wanted]:
    """What insights need to know: the default classifier's labels and detector's objects, and what the rules name."""
    for word in dict.fromkeys((*SIGNALS, *served.rules().features)):
        if word != QUALITY:
            task, model, head_of = feature(word)
            yield Wanted(word, task, model, task.options(**SIGNALS.get(task.name, {})), head_of)


def _of(task: Task, chosen: Options) -> Options:
    """The task's own options; what is None is left to its defaults."""
    values = {name: getattr(chosen, name) for name in task.options.model_fields}
    return task.options.model_construct(**{name: value for name, value in values.items() if value is not None})


def _endpoint(task: Task) -> Endpoint:
    return Endpoint(
        task.endpoint,
        task.summary,
        create_model(task.options.__name__, __base__=(OneModel, task.options)),  # type: ignore[arg-type]
        create_model(f"{task.endpoint.title()}Result", __base__=(DrawnResult, task.result)),  # type: ignore[arg-type]
        task,
    )


class AnyFeature(DrawnResult):
    """Only the features that were asked for are present, each under its word: `classification`, `detection:faces`."""

    model_config = ConfigDict(extra="allow")


def _analyze() -> Endpoint:
    owners: dict[str, list[Task]] = {}
    for task in TASKS.values():
        for name in task.options.model_fields:
            owners.setdefault(name, []).append(task)
    features = Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=32,
            description=f"What to ask: {', '.join(TASKS)}, each of its first model, or of another as TASK:MODEL; with "
            f"{HEAD} behind it about the head of the main subject, the largest person that {DETECTION} finds.",
            json_schema_extra={"items": {"type": "string", "pattern": f"^({'|'.join(TASKS)})(:[^@]+)?({HEAD})?$"}},
        ),
    ]
    fields: dict[str, Any] = {"features": (features, list(TASKS))}
    fields |= {name: _shared(name, tasks) for name, tasks in owners.items()}
    results: dict[str, Any] = {task.name: (task.result | Failure | None, None) for task in TASKS.values()}
    return Endpoint(
        "analyze",
        "Ask several models about each picture, side by side; the picture is decoded once.",
        create_model("AnalyzeOptions", __base__=Drawable, **fields),
        create_model("AnalyzeResult", __base__=AnyFeature, **results),
        None,
    )


class InsightsOptions(Drawable):
    min_score: Annotated[float, Field(ge=rules.LEAST_LABEL, le=1)] = Field(
        0.3, description="Labels, objects and people that score less do not count; the rules have scores of their own."
    )


class WithQuality(AnyFeature):
    quality: Quality


def _insights() -> Endpoint:
    results: dict[str, Any] = {name: (TASKS[name].result | Failure | None, None) for name in SIGNALS}
    return Endpoint(
        "insights",
        "Say what the pictures of one profile show together, with evidence, and give tips.",
        InsightsOptions,
        create_model("InsightsResult", __base__=WithQuality, **results),
        None,
        Insights,
        2,
    )


def _shared(name: str, tasks: list[Task]) -> tuple[Any, Any]:
    """An option of one task as that task has it; of several, by default each has its own value."""
    first = tasks[0].options.model_fields[name]
    if len(tasks) == 1:
        return first.annotation, first
    defaults = ", ".join(f"{task.options.model_fields[name].default:g} for {task.name}" for task in tasks)
    return first.rebuild_annotation() | None, Field(None, description=f"{first.description} By default {defaults}.")


ENDPOINTS: dict[str, Endpoint] = {
    f"/{endpoint.name}": endpoint for endpoint in (*map(_endpoint, TASKS.values()), _analyze(), _insights())
}
"""By path."""
