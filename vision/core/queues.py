"""A runner's queue: what arrives while a call to the runner is in flight goes out together in the next one."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any

from vision.core.errors import Code, VisionError
from vision.core.schemas import Failure

Entry = tuple[Any, asyncio.Future[dict[str, Any]], Context]
"""An item, where its answer goes, and whose it is."""

Call = Callable[[Sequence[Any]], Awaitable[Sequence[dict[str, Any]]]]
"""Items -> for each its result's fields, or `{"error": ...}`."""

log = logging.getLogger("bentoml.vision")


class Coalescer:
    """Sends items in calls of at most `max_batch` items; while one is in flight, in one more of at most `beside`.

    A hop's cost is paid once a call. A lone item goes out at once; a caller that is cancelled takes its waiting
    items along. A call that fails is answered per item, with a retryable error. Who sends few items does not wait for
    those who send many at once: their items share no call, and only the few go out beside another.
    """

    def __init__(self, call: Call, max_batch: int, on_depth: Callable[[int], None], beside: int = 0) -> None:
        self._call = call
        self._on_depth = on_depth
        self._beside = beside
        self._of_many, self._of_few = deque[Entry](), deque[Entry]()
        self._in_calls = 0
        lanes = ((max_batch, (self._of_many, self._of_few)), (beside, (self._of_few,)))
        self._lanes = [(size, queues) for size, queues in lanes if size]
        self._senders: list[asyncio.Task[None] | None] = [None for _ in self._lanes]

    async def predict(self, item: Any, among: int = 1) -> dict[str, Any]:
        """Return one item's result or its error; `among` is how many items its request has."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        queue = self._of_many if among > self._beside else self._of_few
        queue.append((item, future, copy_context()))
        self._tell_depth()
        for index, sender in enumerate(self._senders):
            if sender is None or sender.done():
                self._senders[index] = asyncio.create_task(self._send(*self._lanes[index]))
                break
        return await future

    def _tell_depth(self) -> None:
        self._on_depth(len(self._of_many) + len(self._of_few) + self._in_calls)

    async def _send(self, most: int, queues: Sequence[deque[Entry]]) -> None:
        while batch := self._next(most, queues):
            items, futures, contexts = zip(*batch, strict=True)
            # A trace can follow a call from one request only: the first.
            results = await asyncio.create_task(self._results(items), context=contexts[0])
            self._in_calls -= len(batch)
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
            self._tell_depth()

    def _next(self, most: int, queues: Sequence[deque[Entry]]) -> list[Entry]:
        """Return what goes out now: some of the first queue in which anybody still waits for an answer."""
        batch: list[Entry] = []
        for queue in queues:
            while queue and len(batch) < most:
                entry = queue.popleft()
                if not entry[1].done():
                    batch.append(entry)
            if batch:
                break
        self._in_calls += len(batch)
        self._tell_depth()
        return batch

    async def _results(self, items: Sequence[Any]) -> Sequence[dict[str, Any]]:
        try:
            return await self._call(items)
        except VisionError as error:
            return [Failure.of(error).model_dump()] * len(items)
        except Exception:
            log.exception("a call to a runner failed")
            failure = Failure.of(VisionError(Code.INTERNAL, "Something failed here; the log says what."))
            return [failure.model_dump()] * len(items)
