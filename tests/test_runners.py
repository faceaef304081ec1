"""What stands between BentoML's batching and a model: failures stay with their pictures, lone calls do not wait."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bentoml._internal.marshal.dispatcher import CorkDispatcher

from vision.errors import Code, VisionError
from vision.models import predict_each
from vision.runners import MAX_BATCH_SIZE, PromptOptimizer
from vision.schemas import Card, Classification, ClassifyOptions, Item, Label, Model

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


def test_a_batch_that_raises_is_run_again_one_by_one_and_only_the_culprit_fails() -> None:
    model = Means()
    first, culprit, last = predict_each(model, [item(51), item(0), item(255)])
    assert isinstance(first, Classification)
    assert isinstance(last, Classification)
    assert [first.labels[0].score, last.labels[0].score] == [0.2, 1.0]
    assert isinstance(culprit, VisionError)
    assert culprit.code == Code.INFERENCE_FAILED
    assert model.batches == [3, 1, 1, 1]


def test_a_good_batch_is_one_call() -> None:
    model = Means()
    results = predict_each(model, [item(value) for value in range(1, 1 + MAX_BATCH_SIZE)])
    assert [r.labels[0].score * 255 for r in results if isinstance(r, Classification)] == list(range(1, 17))
    assert model.batches == [MAX_BATCH_SIZE]


def test_bentomls_batching_never_learns_to_wait() -> None:
    dispatcher: Any = CorkDispatcher(60_000, MAX_BATCH_SIZE, fallback=lambda: None)
    assert isinstance(dispatcher.optimizer, PromptOptimizer)
    for _ in range(50):
        dispatcher.optimizer.log_outbound(n=8, wait=2.0, duration=0.1)
    dispatcher.optimizer.trigger_refresh()
    assert dispatcher.optimizer.wait == 0
