"""The supervisor as it is wanted here: nobody commands it, every signal to end ends it in time, nothing outlives it.

BentoML supervises its processes with circus. As it comes, circus takes commands from anybody on loopback, loses a
signal that arrives while it starts or reloads, and waits a day for a process that does not end.
"""

import asyncio
import fcntl
import gc
import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from bentoml._internal.utils import circus
from bentoml._internal.utils.circus import Arbiter
from circus.watcher import Watcher

from vision.bento import insides
from vision.bento.forked import Forked
from vision.bento.shutdown import GRACE_SECONDS, WORKER_SECONDS

ENDPOINT = "inproc://circus-{}"
"""Where circus takes commands and tells events: inside its own process, so from nobody."""

PID = "_VISION_SUPERVISOR"

STARTED, FAILED = signal.SIGUSR1, signal.SIGUSR2

LOST = 70
"""Exit status of a runner whose GPU is lost."""

log = logging.getLogger("bentoml.vision")


def install() -> None:
    """In the process that will be the supervisor: let BentoML use this one."""
    os.environ.pop("BENTOML_CONTAINERIZED", None)  # with it, BentoML would not replace a runner that died
    os.environ.pop("BENTOML_NO_UDS", None)  # with it, runners would listen on TCP ports
    os.environ[PID] = str(os.getpid())
    insides.replace(circus, "Arbiter", Supervisor)
    if sys.platform == "linux":
        insides.replace(Watcher, "_process_class", Forked)


def say_started() -> None:
    """In the public process: from here on a runner that cannot load is tried again, as any that dies."""
    os.kill(int(os.environ[PID]), STARTED)


def end_the_start() -> NoReturn:
    """In a runner that cannot load, and has said why: end the service if it is still starting, and this process."""
    os.kill(int(os.environ[PID]), FAILED)
    os._exit(1)


def leave_for_another(reason: str) -> NoReturn:
    """In a runner that can do nothing more, but whose like can: end at once, and be replaced, even during the start.

    What was in work there fails as retryable, as when a runner is killed.
    """
    log.critical("%s. This process ends, and another takes its place.", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(LOST)


def hold(folder: Path) -> None:
    """Lock a folder for as long as this process lives: what sweeps leaves it alone."""
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)  # the file stays open


class Supervisor(Arbiter):
    _stopping: bool
    _started = _failed = False

    def __init__(self, watchers: list[Any], **given: Any) -> None:
        on_hangup = signal.getsignal(signal.SIGHUP)
        endpoints = {"endpoint": ENDPOINT.format("commands"), "pubsub_endpoint": ENDPOINT.format("events")}
        super().__init__(watchers, **{**given, **endpoints})
        gc.freeze()  # a collection in a copy of this process would write to the memory that they share
        for folder in {Path(one.path).parent for one in given["sockets"] if one.path}:
            hold(folder)
        for watcher in watchers:
            watcher.graceful_timeout = WORKER_SECONDS
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._end_in_time())
        signal.signal(STARTED, lambda *_: self._has_started())
        signal.signal(FAILED, lambda *_: self._has_failed())
        if on_hangup is signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def start(self, cb: Any = None) -> None:
        """Run until the end; remove the processes' sockets then, not before as BentoML does."""
        try:
            super().start(cb)
        finally:
            self.exit_stack.close()
        if self._failed:
            sys.exit(1)

    def stop(self) -> Any:
        return super(Arbiter, self).stop()

    def _has_started(self) -> None:
        self._started = True

    def _has_failed(self) -> None:
        if not self._started:
            self._failed = True
            self._end_in_time()

    def _end_in_time(self) -> None:
        """On a signal: end, however often it comes and whatever goes on."""
        if not self._stopping:
            self._stopping = True  # nothing is started from here on
            signal.alarm(math.ceil(GRACE_SECONDS))  # which ends this process without a word, and the others with it
            self.loop.add_callback_from_signal(self._end)

    async def _end(self) -> None:
        while self._exclusive_running_command:  # circus refuses to stop while it starts or replaces a process
            await asyncio.sleep(0.05)
        await self.stop()
