"""Our engine and our decoder, for peers that are tuned and for the bare loop."""

from collections.abc import Sequence
from typing import Any

from benchmarks.case import Answer, Case
from vision.bento import store
from vision.core import colours
from vision.core.device import CPU
from vision.core.errors import VisionError
from vision.core.images import decode_reduced
from vision.core.look import MAX_BATCH, Question, in_process
from vision.core.predictor import predict_each
from vision.core.queues import Result
from vision.core.schemas import Item
from vision.tasks import TASKS

BATCH = MAX_BATCH
"""Pictures in a call at most, as in our runners."""


class Engine:
    def __init__(self, case: Case) -> None:
        task = TASKS[case.task]
        self._model = task.load(case.saved, store.verify(case.saved), CPU)
        self._shrink = task.load_shrink(case.saved)
        self._options = task.options(**case.options)
        self.question = Question(in_process(task, self._model, case.saved), self._options)
        """For a peer that goes the whole way from bytes to answers in one process."""

    def decode(self, data: bytes) -> Item[Any]:
        picture, size = decode_reduced(data)
        return Item(colours.to_srgb(self._shrink(picture), picture), size, self._options)

    def predict(self, items: Sequence[Item[Any]]) -> list[Answer]:
        """Raises VisionError when a picture fails: only successes count."""
        return [answer(result) for result in predict_each(self._model, items)]


def answer(result: Result) -> Answer:
    if isinstance(result, VisionError):
        raise result
    return result.model_dump(exclude={"model"})
