"""A model's queue: what arrives while a call to the model is in flight goes out together in the next one."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from typing import Any

from pydantic import BaseModel

from vision.core.engine import DeviceLostError
from vision.core.errors import Code, VisionError
from vision.core.schemas import Item

Result = BaseModel | VisionError
"""What a task's model says of a picture, or why it says nothing."""

Call = Callable[[Sequence[Item[Any]]], Awaitable[Sequence[Result]]]
"""Items -> one result or error each, in order."""

Entry = tuple[Item[Any], asyncio.Future[Result], Context]
"""An item, where its answer goes, and whose it is."""

log = logging.getLogger("bentoml.vision")


class Queue:
    """Sends items in calls of at most `max_batch` items; while one is in flight, in one more of at most `beside`.

    What a call costs is paid once for all of its items. A lone item goes out at once; a caller that is cancelled takes
    its waiting items along. A call that fails is answered per item. A small request never queues behind a large one:
    their items share no call, and only a small request's go out beside another call.
    """

    def __init__(
        self, call: Call, max_batch: int, beside: int = 0, on_depth: Callable[[int], object] = id, gather: float = 0
    ) -> None:
        """gather: seconds for which large requests' items wait for more, after a call, unless they fill the next."""
        self._call = call
        self._gather = gather
        self._on_depth = on_depth
        self._beside = beside
        self._large, self._small = deque[Entry](), deque[Entry]()
        self._in_calls = 0
        lanes = ((max_batch, (self._large, self._small)), (beside, (self._small,)))
        self._lanes = [(size, waiting) for size, waiting in lanes if size]
        self._senders: list[asyncio.Task[None] | None] = [None for _ in self._lanes]

    async def predict(self, item: Item[Any], among: int = 1) -> Result:
        """Return one item's result or its error; `among` is how many items its request has.

        Raises DeviceLostError: where models run in this process, and nothing more works in it.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting = self._large if among > self._beside else self._small
        waiting.append((item, future, copy_context()))
        self._tell_depth()
        for index, sender in enumerate(self._senders):
            if sender is None or sender.done():
                self._senders[index] = asyncio.create_task(self._send(*self._lanes[index]))
                break
        return await future

    def _tell_depth(self) -> None:
        self._on_depth(len(self._large) + len(self._small) + self._in_calls)

    async def _send(self, most: int, queues: Sequence[deque[Entry]]) -> None:
        while batch := self._next(most, queues):
            items, futures, contexts = zip(*batch, strict=True)
            # A trace can follow a call from one request only: the first.
            results = await asyncio.create_task(self._results(items), context=contexts[0])
            self._in_calls -= len(batch)
            for future, result in zip(futures, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, DeviceLostError):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            self._tell_depth()
            if self._gather and queues[0] is self._large and 0 < len(self._large) < most:
                await asyncio.sleep(self._gather)

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

    async def _results(self, items: Sequence[Item[Any]]) -> Sequence[Result | DeviceLostError]:
        try:
            return await self._call(items)
        except (VisionError, DeviceLostError) as error:
            return [error] * len(items)
        except Exception:
            log.exception("a call to a model failed")
            return [VisionError(Code.INTERNAL, "Something failed here; the log says what.")] * len(items)
