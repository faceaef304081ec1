"""Calls of models in another process over a Unix socket: frames of text and pixels, nothing copied twice.

A frame is two lengths, then as many bytes of JSON and of pixels. A call has both; its JSON names the method, which is
one of the models there. Its answer has no pixels.
"""

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from opentelemetry import propagate, trace
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from vision.core.errors import Code, VisionError
from vision.core.queues import Result
from vision.core.schemas import Failure, Item, Options, Pixels
from vision.core.task import Task

LENGTHS = struct.Struct("<QQ")

BUFFER = 1 << 24
"""Bytes read ahead: more than most calls have, so that reading them does not pause."""

Predict = Callable[[str, Sequence[Item[Any]]], Awaitable[Sequence[Result]]]
"""A method's name and items -> one result or error each."""

log = logging.getLogger("bentoml.vision")
tracer = trace.get_tracer("vision")


class Caller:
    """The calling end: asks the models of one task.

    seconds: how long a call may take; None: as long as the other process lives.
    """

    def __init__(self, task: Task, path: Path, seconds: float | None) -> None:
        self._task, self._path, self._seconds = task.name, path, seconds
        self._results: TypeAdapter[list[BaseModel]] = TypeAdapter(list[task.result | Failure])  # type: ignore[name-defined]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def predict(self, method: str, items: Sequence[Item[Any]]) -> list[Result]:
        """Let one of the models look at items. Raises VisionError: unavailable."""
        pixels = [item.pixels for item in items]
        told = [{"shape": item.pixels.shape, "size": item.size, "options": item.options.model_dump()} for item in items]
        call: dict[str, Any] = {"method": method, "items": told, "trace": {}}
        propagate.inject(call["trace"])
        results = self._results.validate_json(await self.ask(call, pixels, self._seconds))
        return [result.as_error() if isinstance(result, Failure) else result for result in results]

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def ask(self, call: dict[str, Any], pixels: Sequence[Pixels], within: float | None) -> bytes:
        """Return the JSON of an answer. Raises VisionError: unavailable."""
        try:
            async with asyncio.timeout(within):
                reader, writer = await self._connection()
                try:
                    writer.writelines(_frame(to_json(call), pixels))
                    length, _ = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
                    answer = await reader.readexactly(length)
                except BaseException:
                    writer.close()  # an answer may still come, and would be taken for the next call's
                    raise
        except (OSError, EOFError, TimeoutError) as error:
            log.warning("%s: %s: %s", self._task, type(error).__name__, error)
            raise VisionError(Code.UNAVAILABLE, f"{self._task} cannot answer now; try again in a moment.") from error
        self._idle.append((reader, writer))
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # that process has ended
        return await self.connect()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection that calls can be written to. Raises OSError, EOFError."""
        return await asyncio.open_unix_connection(self._path, limit=BUFFER)


class Calls(asyncio.BufferedProtocol):
    """Answers the calls of a connection, one at a time, until the caller leaves or one fails.

    The system writes each call where its pictures stay: a stream would copy its megabytes three times.
    """

    _transport: asyncio.Transport

    def __init__(self, answer: Callable[[bytes, Pixels], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._answering: asyncio.Task[None] | None = None
        self._text: int | None = None
        """Bytes of the call's JSON, once its lengths are known."""
        self._await(LENGTHS.size)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._came :]

    def buffer_updated(self, nbytes: int) -> None:
        self._came += nbytes
        if self._came < self._data.size:
            return
        if self._text is None:
            self._text, pixels = LENGTHS.unpack(self._data.data)
            self._await(self._text + pixels)
        elif self._answering and not self._answering.done():
            log.error("a call came before the last was answered")
            self._transport.abort()
        else:
            self._data.flags.writeable = False
            text, pixels = self._data[: self._text].tobytes(), self._data[self._text :]
            self._answering = asyncio.ensure_future(self._serve(text, pixels))
            self._text = None
            self._await(LENGTHS.size)

    def _await(self, size: int) -> None:
        self._data, self._came = np.empty(size, np.uint8), 0
        self._view = self._data.data

    async def _serve(self, text: bytes, pixels: Pixels) -> None:
        try:
            answer = await self._answer(text, pixels)
            if self._transport.is_closing():
                return  # the caller has left
            self._transport.write(LENGTHS.pack(len(answer), 0) + answer)
        except Exception:
            log.exception("a call failed")
            self._transport.close()


async def answer(call: dict[str, Any], data: Pixels, options: type[Options], predict: Predict) -> bytes:
    """Answer a call of a model whose options are of this class."""
    with tracer.start_as_current_span("predict", propagate.extract(call["trace"]), trace.SpanKind.SERVER):
        results = await predict(call["method"], _items(call["items"], data, options))
    return to_json([Failure.of(result) if isinstance(result, VisionError) else result for result in results])


def _items(told: Sequence[dict[str, Any]], data: Pixels, options: type[Options]) -> list[Item[Any]]:
    items, start = [], 0
    for item in told:
        shape = item["shape"]
        pixels = data[start : start + prod(shape)].reshape(shape)
        items.append(Item(pixels, tuple(item["size"]), options.model_construct(**item["options"])))
        start += pixels.size
    return items


def _frame(text: bytes, pixels: Sequence[Pixels]) -> list[bytes | memoryview]:
    head = LENGTHS.pack(len(text), sum(one.size for one in pixels)) + text
    return [head, *(np.ascontiguousarray(one).data.cast("B") for one in pixels)]
