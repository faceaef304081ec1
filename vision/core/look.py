"""The one way from a picture's bytes to typed answers: decode once, make each model's pixels, ask each model.

The service, bulk scoring, evaluation and the benchmarks all go it; a model may sit in this process or in a runner's.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

from opentelemetry import trace
from PIL import Image

from vision.core import colours, images, quality, subject
from vision.core.errors import VisionError
from vision.core.images import LIMITS, Limits
from vision.core.pixels import Shrink
from vision.core.predictor import Predictor, predict_each
from vision.core.queues import Queue, Result
from vision.core.schemas import Card, Item, Options, Pixels, Quality
from vision.core.subject import Box
from vision.core.task import Task

MAX_BATCH = 16
"""Pictures that a model is given at once, at most; runners give one on a GPU more."""

Use = Callable[[Image.Image, tuple[int, int]], Any]
"""What is to become of a picture, reduced as images.decode_reduced() does it, and of its size in full."""

Decode = Callable[[bytes, Use], Awaitable[Any]]
"""Decodes a picture and uses it, beside the event loop. Raises VisionError."""

WHOLE = ""
"""The word under which the reduced picture is kept for questions about parts of it."""

tracer = trace.get_tracer("vision")


@dataclass(frozen=True)
class ServedModel:
    """A model that can be asked, wherever it runs."""

    task: Task
    card: Card
    shrink: Shrink
    queue: Queue

    @property
    def tag(self) -> str:
        return f"{self.card.name}:{self.card.version}"


@dataclass(frozen=True)
class Question:
    """A model, and the options with which it is asked."""

    model: ServedModel
    options: Options
    head_of: str | None = None
    """The word of a question that detects: then this one is about the head of the largest person found there."""


@dataclass(frozen=True)
class Seen:
    """What was seen in a picture.

    size: (width, height) of the oriented original. results: one a question, in the questions' order and under their
    words; none for a question about a head where nobody is seen. ms: milliseconds of `decode`, of each question (its
    queue and inference), and `total`. quality: if it was asked for. rendered: a JPEG or PNG of the picture with the
    results drawn on it, if that was asked for (draw.py).
    """

    size: tuple[int, int]
    results: dict[str, Result]
    ms: dict[str, float]
    quality: Quality | None = None
    rendered: bytes | None = None


async def decode_in_thread(data: bytes, use: Use, limits: Limits = LIMITS) -> Any:
    return await asyncio.to_thread(lambda: use(*images.decode_reduced(data, limits)))


def show(
    shrinks: Mapping[str, Shrink], picture: Image.Image, size: tuple[int, int]
) -> tuple[dict[str, Pixels], tuple[int, int]]:
    """Return the pixels that each model needs of a picture, in sRGB, and its size in full."""
    return {word: colours.to_srgb(shrink(picture), picture) for word, shrink in shrinks.items()}, size


def _show_and_measure(
    shrinks: Mapping[str, Shrink], picture: Image.Image, size: tuple[int, int]
) -> tuple[dict[str, Pixels], tuple[int, int], Quality]:
    return *show(shrinks, picture, size), quality.measure(picture)


async def look(
    image: bytes | VisionError,
    questions: Mapping[str, Question],
    *,
    decode: Decode = decode_in_thread,
    among: int = 1,
    measures: bool = False,
    known: Mapping[str, Result] = MappingProxyType({}),
) -> Seen | VisionError:
    """Ask `questions` about a picture, and measure its quality if wanted; there may be no questions then.

    `among` is how many pictures came with it, itself included; `known` what a question about a head may refer to and
    need not be asked.
    Returns the picture's error where it cannot be decoded, or every question failed.
    """
    if isinstance(image, VisionError):
        return image
    shrinks = {word: asked.model.shrink for word, asked in questions.items() if not asked.head_of}
    if len(shrinks) < len(questions):
        shrinks[WHOLE] = images.shrink
    start = perf_counter()
    try:
        shown, size, *measured = await decode(image, partial(_show_and_measure if measures else show, shrinks))
    except VisionError as error:
        return error
    decoded = perf_counter()
    ms = {"decode": _ms(start, decoded)}

    async def ask(word: str, asked: Question) -> Result | None:
        item = Item(shown[word], size, asked.options) if not asked.head_of else await head(asked, asked.head_of)
        if not isinstance(item, Item):
            return item
        with tracer.start_as_current_span(word, attributes={"model": asked.model.tag}):
            result = await asked.model.queue.predict(item, among)
        ms[word] = _ms(decoded, perf_counter())
        return result

    async def head(asked: Question, of: str) -> Item[Any] | VisionError | None:
        found = await asking[of] if of in asking else known[of]
        if isinstance(found, VisionError):
            return found
        person = subject.main(getattr(found, "objects", ()))
        if person is None:
            return None
        return await asyncio.to_thread(_head, shown[WHOLE], size, person.box, asked)

    asking = {word: asyncio.create_task(ask(word, asked)) for word, asked in questions.items()}
    answered = dict(zip(asking, await asyncio.gather(*asking.values()), strict=True))
    results = {word: result for word, result in answered.items() if result is not None}
    errors = [result for result in results.values() if isinstance(result, VisionError)]
    if errors and len(errors) == len(results):
        return errors[0]
    ms["total"] = _ms(start, perf_counter())
    return Seen(size, results, ms, *measured)


def _head(whole: Pixels, size: tuple[int, int], box: Box, asked: Question) -> Item[Any]:
    """Cut the head out of a picture. The box is in pixels of `size`; the picture itself may be smaller."""
    x, y = whole.shape[1] / size[0], whole.shape[0] / size[1]
    x1, y1, x2, y2 = box
    left, top, right, bottom = subject.head((x1 * x, y1 * y, x2 * x, y2 * y), (whole.shape[1], whole.shape[0]))
    cut = Image.fromarray(whole[top:bottom, left:right])
    return Item(asked.model.shrink(cut), cut.size, asked.options)


async def look_through(
    pictures: Iterable[bytes | VisionError],
    questions: Mapping[str, Question],
    *,
    decode: Decode = decode_in_thread,
    at_once: int = 2 * MAX_BATCH,
) -> AsyncIterator[Seen | VisionError]:
    """Look at many pictures, `at_once` of them in work, and yield what is seen in their order."""
    ahead = deque[asyncio.Task[Seen | VisionError]]()
    for picture in pictures:
        if len(ahead) == at_once:
            yield await ahead.popleft()
        ahead.append(asyncio.create_task(look(picture, questions, decode=decode)))
    while ahead:
        yield await ahead.popleft()


def in_process(task: Task, model: Predictor, folder: Path, most: int = MAX_BATCH) -> ServedModel:
    """Serve a model that was loaded from `folder` into this process, in batches of `most`.

    Two are in work: while one is made ready or told, the other has the cores.
    """

    async def call(items: Sequence[Item[Any]]) -> Sequence[Result]:
        return await asyncio.to_thread(predict_each, model, items)

    return ServedModel(task, model.card, task.load_shrink(folder), Queue(call, most, beside=most))


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 2)
