"""A runner's queue: what arrives while a call to the runner is in flight goes out together in the next one."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any

from vision.errors import Code, VisionError
from vision.schemas import Failure

Call = Callable[[Sequence[Any]], Awaitable[Sequence[dict[str, Any]]]]
"""Items -> for each its result's fields, or `{"error": ...}`."""

log = logging.getLogger("bentoml.vision")


class Coalescer:
    """Sends items in calls of at most `max_batch` items; while one is in flight, in one more of at most `beside`.

    A hop's cost is paid once a call. A lone item goes out at once; a caller that is cancelled takes its waiting
    items along. A call that fails is answered per item, with a retryable error.
    """

    def __init__(self, call: Call, max_batch: int, on_depth: Callable[[int], None], beside: int = 0) -> None:
        self._call = call
        self._on_depth = on_depth
        self._waiting: deque[tuple[Any, asyncio.Future[dict[str, Any]], Context]] = deque()
        self._in_calls = 0
        self._sizes = [size for size in (max_batch, beside) if size]
        self._senders: list[asyncio.Task[None] | None] = [None for _ in self._sizes]

    async def predict(self, item: Any) -> dict[str, Any]:
        """Return one item's result or its error."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, copy_context()))
        self._on_depth(len(self._waiting) + self._in_calls)
        for index, sender in enumerate(self._senders):
            if sender is None or sender.done():
                self._senders[index] = asyncio.create_task(self._send(self._sizes[index]))
                break
        return await future

    async def _send(self, most: int) -> None:
        while batch := self._next(most):
            items, futures, contexts = zip(*batch, strict=True)
            # A trace can follow a call from one request only: the first.
            results = await asyncio.create_task(self._results(items), context=contexts[0])
            self._in_calls -= len(batch)
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
            self._on_depth(len(self._waiting) + self._in_calls)

    def _next(self, most: int) -> list[tuple[Any, asyncio.Future[dict[str, Any]], Context]]:
        batch: list[tuple[Any, asyncio.Future[dict[str, Any]], Context]] = []
        while self._waiting and len(batch) < most:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        self._in_calls += len(batch)
        self._on_depth(len(self._waiting) + self._in_calls)
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
