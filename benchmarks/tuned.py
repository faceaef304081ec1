"""Our engine and our decoder, for peers that are tuned and for the bare loop."""

from collections.abc import Sequence
from typing import Any

from benchmarks.case import Answer, Case
from vision.bento import store
from vision.core import images
from vision.core.errors import VisionError
from vision.core.predictor import predict_each
from vision.core.schemas import Item
from vision.tasks import TASKS

BATCH = 16
"""Pictures in a call at most, as in vision/bento/runners.py."""


class Engine:
    def __init__(self, case: Case) -> None:
        task = TASKS[case.task]
        self._model = task.load(case.saved, store.verify(case.saved), "cpu")
        self._shrink = task.load_shrink(case.saved)
        self._options = task.options(**case.options)

    def decode(self, data: bytes) -> Item[Any]:
        picture, size = images.decode_reduced(data, images.LIMITS)
        return Item(self._shrink(picture), size, self._options)

    def predict(self, items: Sequence[Item[Any]]) -> list[Answer]:
        """Raises VisionError when a picture fails: only successes count."""
        results = predict_each(self._model, items)
        for result in results:
            if isinstance(result, VisionError):
                raise result
        return [result.model_dump(exclude={"model"}) for result in results if not isinstance(result, VisionError)]
