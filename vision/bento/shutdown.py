"""SIGTERM without a lost request: readiness goes first, accepted requests finish, runners leave last.

BentoML tells all processes to stop at once: a request that still has to ask a runner would fail.
"""

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from types import FrameType
from typing import IO, Any

from vision.bento import hop, workers
from vision.settings import SETTINGS

UVICORN_STOPS = 0.5
"""Seconds within which uvicorn has stopped accepting: it looks for its signal every 0.1 s."""

GRACE_SECONDS = SETTINGS.drain_seconds + SETTINGS.request_seconds + 10
"""From SIGTERM to the end of all processes at the latest."""

WORKER_SECONDS = GRACE_SECONDS - 5
"""From SIGTERM until a process that has not ended is killed."""

DRAINING = Event()
"""Set in a public process from its SIGTERM on."""


def is_draining() -> bool:
    """In a public process: whether one of them has had SIGTERM. The others are about to."""
    return DRAINING.is_set() or workers.ledger().total(workers.DRAINING) > 0


def drain_first(seconds: float) -> IO[str]:
    """In the public process: on SIGTERM say not ready, and refuse connections `seconds` later.

    Returns the file whose lock tells the runners that this process lives; it must stay open.
    """
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1])))

    def drain(stop: Callable[[], None]) -> None:
        DRAINING.set()
        workers.ledger().set(workers.DRAINING, 1)
        loop.call_soon_threadsafe(loop.call_later, seconds, stop)
        # The other processes hold the listening socket too: unless it is shut for all, who connects now would hang.
        loop.call_soon_threadsafe(loop.call_later, seconds + UVICORN_STOPS, shut, listener)

    _on_sigterm(drain)
    alive = _lock_file().open("w")
    fcntl.flock(alive, fcntl.LOCK_SH)
    return alive


def shut(listener: socket.socket) -> None:
    with suppress(OSError):  # another public process has shut it
        listener.shutdown(socket.SHUT_RDWR)


def leave_last() -> None:
    """In a runner: on SIGTERM go on until no public process is left, or it is time."""
    loop = asyncio.get_running_loop()
    lock_file = _lock_file()

    def wait(stop: Callable[[], None]) -> None:
        latest = monotonic() + WORKER_SECONDS
        while monotonic() < latest and _is_locked(lock_file):
            sleep(0.1)
        loop.call_soon_threadsafe(stop)

    _on_sigterm(lambda stop: Thread(target=wait, args=[stop], daemon=True).start())


def _on_sigterm(then: Callable[[Callable[[], None]], None]) -> None:
    """Run `then` on SIGTERM, with what the handler so far (uvicorn's) would have done."""
    before: Any = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        then(lambda: before(number, frame))

    signal.signal(signal.SIGTERM, handle)


def _is_locked(path: Path) -> bool:
    """Whether a public process lives: when it ends, however it does, its lock goes."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _lock_file() -> Path:
    """A file beside the runners' sockets."""
    return next(iter(hop.sockets().values())).parent / "public.lock"
