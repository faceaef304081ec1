"""The way from the public process to a runner: a connection to BentoML's own Unix socket, switched from HTTP to frames.

BentoML's way there, pickled arrays in HTTP requests, costs both processes 2.9 ms of CPU for a lone picture, this 1.4.
What stands behind it stays BentoML's: the socket, the runner that is replaced when it dies, adaptive batching.

A frame is two lengths, then as many bytes of JSON and of pixels: a call has both, its answer has no pixels.
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
from typing import Any

import numpy as np
from opentelemetry import propagate, trace
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vision.core.errors import Code, VisionError

LENGTHS = struct.Struct("<QQ")

TOKEN = b"vision-frames"
"""Names the protocol in HTTP's Upgrade header (RFC 9110, 7.8)."""

CALL_SECONDS = 120
"""How long a call may take. Requests have a shorter time; this one frees what waits for a runner that hangs."""

BUFFER = 1 << 24
"""Bytes read ahead: more than most calls have, so that reading them does not pause."""

Predict = Callable[[list[Any]], Awaitable[Sequence[dict[str, Any]]]]

log = logging.getLogger("bentoml.vision")
tracer = trace.get_tracer("vision")


def sockets() -> dict[str, Path]:
    """Each runner's Unix socket, as BentoML tells all processes."""
    runners: dict[str, str] = json.loads(os.environ["BENTOML_RUNNER_MAP"])
    return {name: Path(url.removeprefix("file://")) for name, url in runners.items() if url.startswith("file://")}


class Caller:
    """The public process's end: calls one runner."""

    def __init__(self, runner: str) -> None:
        self._runner, self._path = runner, sockets()[runner]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def predict(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Items {pixels, size, options} -> for each its result's fields. Raises VisionError: unavailable."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._call(items)
        except (OSError, EOFError, TimeoutError) as error:
            log.warning("%s: %s: %s", self._runner, type(error).__name__, error)
            raise VisionError(Code.UNAVAILABLE, f"{self._runner} cannot answer now; try again in a moment.") from error

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _call(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        reader, writer = await self._connection()
        try:
            pixels = [item["pixels"] for item in items]
            told = [{**item, "pixels": one.shape} for item, one in zip(items, pixels, strict=True)]
            call: dict[str, Any] = {"items": told, "trace": {}}
            propagate.inject(call["trace"])
            _write(writer, call, pixels)
            results, _ = await _read(reader)
        except BaseException:
            writer.close()  # an answer may still come, and would be taken for the next call's
            raise
        self._idle.append((reader, writer))
        return list(results)

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

    def __init__(self, predict: Predict, **given: Any) -> None:
        super().__init__(**given)
        self._predict = predict

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() == TOKEN

    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)  # uvicorn's end would wait for it
        frames = asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=BUFFER), self._answer)
        self.transport.set_protocol(frames)
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % TOKEN)
        frames.connection_made(self.transport)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer calls until the caller leaves, or one fails."""
        try:
            while True:
                try:
                    call, data = await _read(reader)
                except (EOFError, OSError):
                    return
                _write(writer, await self._results(call, data))
        except Exception:
            log.exception("a call failed")
        finally:
            writer.close()

    async def _results(self, call: dict[str, Any], data: bytes) -> Any:
        with tracer.start_as_current_span("predict", propagate.extract(call["trace"]), trace.SpanKind.SERVER):
            return await self._predict(_items(call["items"], data))


def install(predict: Predict) -> None:
    """Let the uvicorn that BentoML starts in this process answer frames with `predict`."""
    vars(auto).update(AutoHTTPProtocol=partial(RunnerProtocol, predict))


def _items(told: Sequence[dict[str, Any]], data: bytes) -> list[dict[str, Any]]:
    items, start = [], 0
    for item in told:
        shape = item["pixels"]
        pixels = np.frombuffer(data, np.uint8, prod(shape), start).reshape(shape)
        items.append({**item, "pixels": pixels, "size": tuple(item["size"])})
        start += pixels.size
    return items


def _write(writer: asyncio.StreamWriter, told: Any, pixels: Sequence[Any] = ()) -> None:
    text = json.dumps(told).encode()
    writer.write(LENGTHS.pack(len(text), sum(one.size for one in pixels)) + text)
    for one in pixels:
        writer.write(np.ascontiguousarray(one).data.cast("B"))


async def _read(reader: asyncio.StreamReader) -> tuple[Any, bytes]:
    lengths = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
    text, data = [await reader.readexactly(length) for length in lengths]
    return json.loads(text), data
