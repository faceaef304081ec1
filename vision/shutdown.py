"""SIGTERM without a lost request: readiness goes first, accepted requests finish, runners leave last.

BentoML tells all processes to stop at once and removes the runners' sockets before: a request that still has to ask a
runner would fail.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import IO, Any, NoReturn

from bentoml._internal.utils import circus

from vision import hop

UVICORN_STOPS = 0.5
"""Seconds within which uvicorn has stopped accepting: it looks for its signal every 0.1 s."""

LOST = 70
"""Exit status of a runner whose GPU is lost."""

log = logging.getLogger("bentoml.vision")

DRAINING = Event()
"""Set in the public process from SIGTERM on."""


def keep_sockets_until_the_end() -> None:
    """In the supervisor: let BentoML clean up after the processes have ended, not before."""

    def stop(arbiter: circus.Arbiter) -> Any:
        stopped = super(circus.Arbiter, arbiter).stop()
        stopped.add_done_callback(lambda _: arbiter.exit_stack.close())
        return stopped

    type.__setattr__(circus.Arbiter, "stop", stop)


def drain_first(seconds: float) -> IO[str]:
    """In the public process: on SIGTERM say not ready, and refuse connections `seconds` later.

    Returns the file whose lock tells the runners that this process lives; it must stay open.
    """
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1])))

    def drain(stop: Callable[[], None]) -> None:
        DRAINING.set()
        loop.call_soon_threadsafe(loop.call_later, seconds, stop)
        # The other processes hold the listening socket too: unless it is shut for all, who connects now would hang.
        loop.call_soon_threadsafe(loop.call_later, seconds + UVICORN_STOPS, listener.shutdown, socket.SHUT_RDWR)

    _on_sigterm(drain)
    alive = _lock_file().open("w")
    fcntl.flock(alive, fcntl.LOCK_SH)
    return alive


def leave_last() -> None:
    """In a runner: on SIGTERM go on until no public process is left."""
    loop = asyncio.get_running_loop()
    lock_file = _lock_file()

    def wait(stop: Callable[[], None]) -> None:
        if lock_file.exists():
            with lock_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # granted when the last holder has ended, however it did
        loop.call_soon_threadsafe(stop)

    _on_sigterm(lambda stop: Thread(target=wait, args=[stop], daemon=True).start())


def _on_sigterm(then: Callable[[Callable[[], None]], None]) -> None:
    """Run `then` on SIGTERM, with what the handler so far (uvicorn's) would have done."""
    before: Any = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        then(lambda: before(number, frame))

    signal.signal(signal.SIGTERM, handle)


def _lock_file() -> Path:
    """A file beside the runners' sockets."""
    return next(iter(hop.sockets().values())).parent / "public.lock"


def leave_for_another(reason: str) -> NoReturn:
    """In a runner that can do nothing more: end at once, so that BentoML starts another in its place.

    What was in work there fails as retryable, as when a runner is killed.
    """
    log.critical("%s. This process ends, and another takes its place.", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(LOST)
