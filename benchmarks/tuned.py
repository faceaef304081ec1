"""Our engine and our decoder, for peers that are tuned and for the bare loop."""

from collections.abc import Sequence
from typing import Any

from benchmarks.case import Answer, Case
from vision.bento import store
from vision.core import images
from vision.core import predictor as models
from vision.core.errors import VisionError
from vision.core.schemas import OPTIONS, Item

BATCH = 16
"""Pictures in a call at most, as in vision/bento/runners.py."""


class Engine:
    def __init__(self, case: Case) -> None:
        self._model = models.load(case.saved, store.verify(case.saved), "cpu")
        self._shrink = models.load_shrink(case.saved, case.task)
        self._options = OPTIONS[case.task](**case.options)

    def decode(self, data: bytes) -> Item[Any]:
        picture, size = images.decode_reduced(data, images.LIMITS)
        return Item(self._shrink(picture), size, self._options)

    def predict(self, items: Sequence[Item[Any]]) -> list[Answer]:
        """Raises VisionError when a picture fails: only successes count."""
        results = models.predict_each(self._model, items)
        for result in results:
            if isinstance(result, VisionError):
                raise result
        return [result.model_dump(exclude={"model"}) for result in results if not isinstance(result, VisionError)]
