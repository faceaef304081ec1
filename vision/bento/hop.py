"""The way from the public process to a runner: a connection to BentoML's own Unix socket, switched from HTTP to frames.

BentoML's way there, pickled arrays in HTTP requests, costs both processes 2.9 ms of CPU for a lone picture, this 1.4.
What stands behind it stays BentoML's: the socket, the runner that is replaced when it dies, adaptive batching.

A frame is two lengths, then as many bytes of JSON and of pixels. A call has both; its JSON names the method, which is
one of a runner's models, or no method, which asks for the models' memory. Its answer has no pixels.
"""

import asyncio
import json
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from opentelemetry import propagate, trace
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vision.bento import insides
from vision.core.errors import Code, VisionError
from vision.core.queues import Result
from vision.core.schemas import Failure, Item, Options, Pixels
from vision.core.task import Task

LENGTHS = struct.Struct("<QQ")

TOKEN = b"vision-frames"
"""Names the protocol in HTTP's Upgrade header (RFC 9110, 7.8)."""

CALL_SECONDS = 120
"""How long a call may take. Requests have a shorter time; this one frees what waits for a runner that hangs."""

BUFFER = 1 << 24
"""Bytes read ahead: more than most calls have, so that reading them does not pause."""

Predict = Callable[[str, Sequence[Item[Any]]], Awaitable[Sequence[Result]]]
"""A method's name and items -> one result or error each."""

log = logging.getLogger("bentoml.vision")
tracer = trace.get_tracer("vision")


def sockets() -> dict[str, Path]:
    """Each runner's Unix socket, as BentoML tells all processes."""
    runners: dict[str, str] = json.loads(os.environ["BENTOML_RUNNER_MAP"])
    return {name: Path(url.removeprefix("file://")) for name, url in runners.items() if url.startswith("file://")}


class Caller:
    """The public process's end: calls one task's runner."""

    def __init__(self, task: Task) -> None:
        self._runner, self._path = task.name, sockets()[task.name]
        self._results: TypeAdapter[list[BaseModel]] = TypeAdapter(list[task.result | Failure])  # type: ignore[name-defined]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def predict(self, method: str, items: Sequence[Item[Any]]) -> list[Result]:
        """Let one of the runner's models look at items. Raises VisionError: unavailable."""
        pixels = [item.pixels for item in items]
        told = [{"shape": item.pixels.shape, "size": item.size, "options": item.options.model_dump()} for item in items]
        call: dict[str, Any] = {"method": method, "items": told, "trace": {}}
        propagate.inject(call["trace"])
        results = self._results.validate_json(await self._answer(call, pixels))
        return [result.as_error() if isinstance(result, Failure) else result for result in results]

    async def memory(self) -> list[int]:
        """Return the bytes that each of the runner's models took, in their order. Raises VisionError: unavailable."""
        taken: list[int] = json.loads(await self._answer({"method": None}, [], within=2))
        return taken

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _answer(self, call: dict[str, Any], pixels: Sequence[Pixels], within: float = CALL_SECONDS) -> bytes:
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
            log.warning("%s: %s: %s", self._runner, type(error).__name__, error)
            raise VisionError(Code.UNAVAILABLE, f"{self._runner} cannot answer now; try again in a moment.") from error
        self._idle.append((reader, writer))
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # that runner has ended
        reader, writer = await asyncio.open_unix_connection(self._path, limit=BUFFER)
        try:
            await _switch(reader, writer)
        except BaseException:
            writer.close()
            raise
        return reader, writer


async def _switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nHost: runner\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % TOKEN)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError("The runner does not speak frames.")


class RunnerProtocol(HttpToolsProtocol):
    """A runner's end: HTTP, until a connection is switched to frames."""

    def __init__(self, task: Task, predict: Predict, memory: Callable[[], Sequence[int]], **given: Any) -> None:
        super().__init__(**given)
        self._task, self._predict, self._memory = task, predict, memory

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() == TOKEN

    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)  # uvicorn's end would wait for it
        frames, transport = Calls(self._answer), self.transport
        transport.pause_reading()  # uvloop asks how a protocol reads only when it begins to
        transport.set_protocol(frames)
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % TOKEN)
        frames.connection_made(transport)
        transport.resume_reading()

    async def _answer(self, text: bytes, data: Pixels) -> bytes:
        call = json.loads(text)
        if call["method"] is None:
            return to_json(self._memory())
        with tracer.start_as_current_span("predict", propagate.extract(call["trace"]), trace.SpanKind.SERVER):
            results = await self._predict(call["method"], _items(call["items"], data, self._task.options))
        return to_json([Failure.of(result) if isinstance(result, VisionError) else result for result in results])


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
            self._transport.write(LENGTHS.pack(len(answer), 0) + answer)
        except Exception:
            log.exception("a call failed")
            self._transport.close()


def install(task: Task, predict: Predict, memory: Callable[[], Sequence[int]]) -> None:
    """Let the uvicorn that BentoML starts in this process answer frames."""
    insides.replace(auto, "AutoHTTPProtocol", partial(RunnerProtocol, task, predict, memory))


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
