"""The way from the public process to a runner: a connection to BentoML's own Unix socket, switched from HTTP to frames.

BentoML's way there, pickled arrays in HTTP requests, costs both processes 2.9 ms of CPU for a lone picture, this 1.4.
What stands behind it stays BentoML's: the socket, the runner that is replaced when it dies, adaptive batching.

A call's method is one of a runner's models, or none, which asks for the models' memory.
"""

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vision.bento import insides
from vision.core import frames
from vision.core.frames import Predict
from vision.core.schemas import Pixels
from vision.core.task import Task

TOKEN = b"vision-frames"
"""Names the protocol in HTTP's Upgrade header (RFC 9110, 7.8)."""

CALL_SECONDS = 120
"""How long a call may take. Requests have a shorter time; this one frees what waits for a runner that hangs."""


def sockets() -> dict[str, Path]:
    """Each runner's Unix socket, as BentoML tells all processes."""
    runners: dict[str, str] = json.loads(os.environ["BENTOML_RUNNER_MAP"])
    return {name: Path(url.removeprefix("file://")) for name, url in runners.items() if url.startswith("file://")}


class Caller(frames.Caller):
    """The public process's end: calls one task's runner."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, sockets()[task.name], CALL_SECONDS)

    async def memory(self) -> list[int]:
        """Return the bytes that each of the runner's models took, in their order. Raises VisionError: unavailable."""
        taken: list[int] = json.loads(await self.ask({"method": None}, [], within=2))
        return taken

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await super().connect()
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
        calls, transport = frames.Calls(self._answer), self.transport
        transport.pause_reading()  # uvloop asks how a protocol reads only when it begins to
        transport.set_protocol(calls)
        transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % TOKEN)
        calls.connection_made(transport)
        transport.resume_reading()

    async def _answer(self, text: bytes, data: Pixels) -> bytes:
        call = json.loads(text)
        if call["method"] is None:
            return to_json(self._memory())
        return await frames.answer(call, data, self._task.options, self._predict)


def install(task: Task, predict: Predict, memory: Callable[[], Sequence[int]]) -> None:
    """Let the uvicorn that BentoML starts in this process answer frames."""
    insides.replace(auto, "AutoHTTPProtocol", partial(RunnerProtocol, task, predict, memory))
