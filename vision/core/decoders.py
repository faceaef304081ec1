"""Who decodes what when: a cheap picture never waits behind dear ones, and callers take turns.

Three lanes, by what a picture's header says it will take. Each has places of its own, so dear pictures never hold all
decoders. In a lane, the caller goes next who has used the least.
"""

import asyncio
import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from threading import local
from time import perf_counter
from typing import Any, TypeVar

from PIL import Image

from vision.core.decode_process import MAPPED_BYTES, DecodeProcess
from vision.core.errors import Code, VisionError
from vision.core.images import Header, Limits, decode_cheap, decode_reduced
from vision.core.ledger import Ledger

T = TypeVar("T")

CHEAP_SECONDS = 0.12
"""Decoding that takes no longer is done in this process: a JPEG up to 15 megapixels, other formats up to 3.75."""

HUGE_PIXELS = 25_000_000
"""Larger pictures are decoded one at a time: 75 megapixels may take a gigabyte meanwhile."""


LETS_OTHERS_RUN = ("JPEG",)
"""Formats during whose decoding Pillow never holds Python's lock for long: they need no other process."""


@dataclass(eq=False)
class Work:
    """One call that waits for a place or has one."""

    call: Callable[[], Any]
    seconds: float
    answer: asyncio.Future[Any]


@dataclass
class Usage:
    """What a caller has used of a lane, in seconds, and what it waits for."""

    used: float
    running: int = 0
    waiting: deque[Work] = field(default_factory=deque)


class Lane:
    """Threads that callers take turns at."""

    def __init__(self, places: int) -> None:
        self._threads = ThreadPoolExecutor(places)
        self._free = places
        self._accounts: dict[str, Usage] = {}
        self._now = 0.0  # what whoever went last had used: a newcomer starts there, owing and owed nothing

    async def run(self, caller: str, seconds: float, call: Callable[[], T]) -> T:
        """Run `call`, which will take some `seconds`, in a thread when it is the caller's turn.

        A caller that is cancelled takes its waiting work along; its running work keeps the place until it is done.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        account = self._accounts.setdefault(caller, Usage(self._now))
        account.waiting.append(work := Work(call, seconds, answer))
        self._admit()
        try:
            return await answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # it runs already
                account.waiting.remove(work)
                self._forget_idle(caller)
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._free and (next_one := self._next()):
            caller, account, work = next_one
            self._now = max(self._now, account.used)
            account.used += work.seconds
            account.running += 1
            self._free -= 1
            start = perf_counter()

            def done(future: Future[Any], caller: str = caller, work: Work = work, start: float = start) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(self._leave, caller, work, perf_counter() - start, future)

            self._threads.submit(work.call).add_done_callback(done)

    def _next(self) -> tuple[str, Usage, Work] | None:
        """Return the first waiting work of who has used the least."""
        waiting = [(account.used, caller) for caller, account in self._accounts.items() if account.waiting]
        if not waiting:
            return None
        _, caller = min(waiting)
        account = self._accounts[caller]
        return caller, account, account.waiting.popleft()

    def _leave(self, caller: str, work: Work, seconds: float, future: Future[Any]) -> None:
        account = self._accounts[caller]
        account.used += seconds - work.seconds
        account.running -= 1
        self._free += 1
        self._forget_idle(caller)
        if not work.answer.done():
            if error := future.exception():
                work.answer.set_exception(error)
            else:
                work.answer.set_result(future.result())
        self._admit()

    def _forget_idle(self, caller: str) -> None:
        account = self._accounts[caller]
        if not account.running and not account.waiting:
            del self._accounts[caller]


class Decoders:
    """Decodes pictures of many callers: cheap ones and JPEGs in threads, other large ones in processes of their own."""

    def __init__(self, places: int, limits: Limits, pixels: int, seconds: float, ledger: Ledger | None = None) -> None:
        """`pixels` of dear pictures a caller may have in work; no picture may take longer than `seconds`.

        The former, and that one huge picture is decoded at a time, holds over all processes that share the ledger.
        """
        self._limits, self._most, self._seconds = limits, pixels, seconds
        self._ledger = ledger or Ledger()
        self._cheap, self._dear, self._huge = Lane(places), Lane(places), Lane(1)
        self._own = local()  # each thread of the two latter has a process once it needs one
        self._processes: list[DecodeProcess] = []

    async def run(self, caller: str, data: bytes, use: Callable[[Image.Image, tuple[int, int]], T]) -> T:
        """Decode a picture as images.decode_reduced() does, and return what `use` makes of it and its size in full.

        Both run in threads. `caller` is whoever the work is counted for. Raises VisionError: what decode_reduced()
        raises, and quota_exceeded.
        """

        def cheap() -> T | Header:
            found = decode_cheap(data, self._limits, CHEAP_SECONDS)
            return found if isinstance(found, Header) else use(*found)

        found = await self._cheap.run(caller, CHEAP_SECONDS, cheap)
        if not isinstance(found, Header):
            return found
        is_huge = found.pixels > HUGE_PIXELS
        lane = self._huge if is_huge else self._dear
        lets_others_run = found.format in LETS_OTHERS_RUN

        def dear() -> T:
            with self._ledger.alone() if is_huge else nullcontext():
                if lets_others_run:
                    return use(*decode_reduced(data, self._limits))
                return use(*self._process().decode_reduced(data))

        in_work = self._ledger.add_pixels(caller, found.pixels, self._most)
        if in_work is not None:
            raise VisionError(
                Code.QUOTA_EXCEEDED,
                f"{in_work:,} pixels of large pictures are in work for you, of {self._most:,} at most; wait for them.",
            )
        try:
            return await lane.run(caller, found.seconds, dear)
        finally:
            self._ledger.take_pixels(caller, found.pixels)

    def close(self) -> None:
        for lane in (self._cheap, self._dear, self._huge):
            lane.close()
        for process in self._processes:
            process.close()

    def _process(self) -> DecodeProcess:
        if not hasattr(self._own, "process"):
            self._own.process = DecodeProcess(self._limits, self._seconds)
            self._processes.append(self._own.process)
        process: DecodeProcess = self._own.process
        return process


def keep_freed_memory() -> None:
    """Let this process's allocator keep what pictures take: half the time of decoding goes into getting it again."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):  # glibc's
        mmap_threshold, trim_threshold = -3, -1
        allocator.mallopt(mmap_threshold, MAPPED_BYTES)
        allocator.mallopt(trim_threshold, 128 << 20)
