"""What stands between a request and a model: failures stay with their pictures, waiting items go out together."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from vision.core.errors import Code, VisionError
from vision.core.look import MAX_BATCH
from vision.core.predictor import predict_each
from vision.core.queues import Queue, Result
from vision.core.schemas import Card, Item, Model
from vision.tasks.classification.spec import Classification, ClassifyOptions, Label

CARD = Card(
    task="classification",
    name="means",
    version="1",
    architecture="the mean of a picture's pixels",
    source="here",
    licence="none",
    description="",
    preprocessing="",
    labels=1,
    input_size=(1, 1),
)


class Means:
    """A model computed by hand: the score is the mean of the pixels; a batch that holds a black one raises."""

    card = CARD

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, items: Sequence[Item[Any]]) -> list[Classification]:
        self.batches.append(len(items))
        means = [float(item.pixels.mean()) / 255 for item in items]
        if 0 in means:
            raise RuntimeError("black")
        return [Classification(labels=[Label(label="mean", score=mean)], model=Model.of(CARD)) for mean in means]


def item(value: int) -> Item[ClassifyOptions]:
    return Item(np.full((2, 2, 3), value, np.uint8), (2, 2), ClassifyOptions())


def test_a_batch_that_raises_is_halved_until_only_the_culprit_fails() -> None:
    model = Means()
    values = [51, 102, 0, 153, 204, 255, 51, 102]
    results = predict_each(model, [item(value) for value in values])
    culprit = results.pop(2)
    assert isinstance(culprit, VisionError)
    assert culprit.code == Code.INFERENCE_FAILED
    scores = [result.labels[0].score for result in results if isinstance(result, Classification)]
    assert scores == [value / 255 for value in values if value]
    assert model.batches == [8, 4, 2, 2, 1, 1, 4]


def test_a_good_batch_is_one_call() -> None:
    model = Means()
    results = predict_each(model, [item(value) for value in range(1, 1 + MAX_BATCH)])
    assert [r.labels[0].score * 255 for r in results if isinstance(r, Classification)] == list(range(1, 17))
    assert model.batches == [MAX_BATCH]


class Answer(BaseModel):
    item: int


class Runner:
    """Answers each item with itself, once it is told to."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = asyncio.Semaphore(0)

    async def call(self, items: Sequence[Any]) -> list[Result]:
        self.calls.append(list(items))
        await self.go.acquire()
        if 13 in items:
            raise VisionError(Code.UNAVAILABLE, "away")
        return [Answer(item=item) for item in items]


async def queued(queue: Queue, items: Sequence[Any]) -> list[asyncio.Task[Any]]:
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(queue.predict(item)) for item in items]
    await asyncio.sleep(0)  # each has put its item in the queue
    return tasks


def test_what_waits_goes_out_together_and_in_order_at_most_a_batch_at_once() -> None:
    async def run() -> None:
        runner, depths = Runner(), list[int]()
        tasks = await queued(Queue(runner.call, 4, on_depth=depths.append), range(1, 8))
        runner.go.release()
        runner.go.release()
        assert [(await task).item for task in tasks[:4]] == [1, 2, 3, 4]
        runner.go.release()
        assert [(await task).item for task in tasks[4:]] == [5, 6, 7]
        assert runner.calls == [[1, 2, 3, 4], [5, 6, 7]]
        assert max(depths) == 7
        assert depths[-1] == 0

    asyncio.run(run())


def test_a_lone_item_goes_out_at_once_and_what_comes_meanwhile_in_the_next_call() -> None:
    async def run() -> None:
        runner = Runner()
        queue = Queue(runner.call, 4)
        first = await queued(queue, [1])
        while not runner.calls:
            await asyncio.sleep(0)
        later = await queued(queue, [2, 3])
        runner.go.release()
        runner.go.release()
        await asyncio.gather(*first, *later)
        assert runner.calls == [[1], [2, 3]]

    asyncio.run(run())


def test_a_few_items_go_out_beside_a_call_in_flight() -> None:
    async def run() -> None:
        runner, depths = Runner(), list[int]()
        queue = Queue(runner.call, 4, 2, depths.append)
        tasks = await queued(queue, [1])
        while len(runner.calls) < 1:
            await asyncio.sleep(0)
        tasks += await queued(queue, range(2, 9))
        while len(runner.calls) < 2:
            await asyncio.sleep(0)
        runner.go.release()  # the first call's
        await tasks[0]
        while len(runner.calls) < 3:
            await asyncio.sleep(0)
        for _ in range(3):
            runner.go.release()
        assert [(await task).item for task in tasks] == list(range(1, 9))
        assert runner.calls == [[1], [2, 3], [4, 5, 6, 7], [8]]
        assert max(depths) == 8
        assert depths[-1] == 0

    asyncio.run(run())


def test_few_items_do_not_wait_for_those_of_a_request_with_many() -> None:
    async def run() -> None:
        runner = Runner()
        queue = Queue(runner.call, 4, 2)
        items: list[Any] = list(range(1, 10))
        many = [asyncio.ensure_future(queue.predict(item, among=9)) for item in items]
        while not runner.calls:
            await asyncio.sleep(0)
        few = await queued(queue, [21, 22, 23])
        while len(runner.calls) < 2:
            await asyncio.sleep(0)
        assert runner.calls == [[1, 2, 3, 4], [21, 22]]
        for _ in range(5):
            runner.go.release()
        await asyncio.gather(*many, *few)
        assert runner.calls[2:] == [[5, 6, 7, 8], [23], [9]]

    asyncio.run(run())


def test_items_of_large_requests_wait_for_more_unless_they_fill_a_call() -> None:
    async def run() -> None:
        runner = Runner()
        queue = Queue(runner.call, 2, 1, gather=0.2)

        async def many(*items: Any) -> list[asyncio.Task[Any]]:
            tasks = [asyncio.create_task(queue.predict(item, among=9)) for item in items]
            await asyncio.sleep(0)
            return tasks

        tasks = await many(1)
        while not runner.calls:
            await asyncio.sleep(0)
        tasks += await many(2)
        runner.go.release()
        await tasks[0]
        few = await queued(queue, [21])  # waits for nobody
        while len(runner.calls) < 2:
            await asyncio.sleep(0)
        tasks += await many(3, 4, 5)
        for _ in range(4):
            runner.go.release()
        await asyncio.gather(*few, *tasks)
        assert runner.calls == [[1], [21], [2, 3], [4, 5]]

    asyncio.run(run())


def test_a_full_call_waits_for_nobody() -> None:
    async def run() -> None:
        runner = Runner()
        items: list[Any] = [1, 2, 3, 4]
        queue = Queue(runner.call, 2, gather=3600)
        for _ in range(2):
            runner.go.release()
        await asyncio.gather(*(queue.predict(item, among=4) for item in items))
        assert runner.calls == [[1, 2], [3, 4]]

    asyncio.run(run())


def test_an_item_whose_caller_left_is_never_sent() -> None:
    async def run() -> None:
        runner = Runner()
        queue = Queue(runner.call, 4)
        first = await queued(queue, [1])
        while not runner.calls:
            await asyncio.sleep(0)
        left, stayed = await queued(queue, [2, 3])
        left.cancel()
        runner.go.release()
        runner.go.release()
        assert [(await task).item for task in (*first, stayed)] == [1, 3]
        assert runner.calls == [[1], [3]]

    asyncio.run(run())


def test_a_call_that_fails_is_its_items_error_and_the_next_call_is_made() -> None:
    async def run() -> None:
        runner = Runner()
        queue = Queue(runner.call, 2)
        tasks = await queued(queue, [12, 13, 14])
        runner.go.release()
        runner.go.release()
        failed, also, answered = await asyncio.gather(*tasks)
        assert failed.code == also.code == Code.UNAVAILABLE
        assert answered.item == 14

    asyncio.run(run())
