"""This service with a null classifier: it takes as long as a GPU would, and no CPU. `benchmarks.feed` runs it.

What is left is the work of the processes that feed the card.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision.core import device
from vision.core.device import Device
from vision.core.schemas import Card, Item, Model
from vision.tasks import TASKS
from vision.tasks.classification.spec import Classification, Label

SECONDS_A_CALL, SECONDS_AN_IMAGE = 0.001, 1 / 5000
"""As ViT-base takes them on one H200 (benchmarks/README.md)."""


class Null:
    def __init__(self, card: Card) -> None:
        self.card = card
        labels = [Label(label=f"label {number}", score=0.1234567 * number) for number in range(5, 0, -1)]
        self._answer = Classification(labels=labels, model=Model.of(card))

    def predict(self, items: Sequence[Item[Any]]) -> list[Classification]:
        time.sleep(SECONDS_A_CALL + SECONDS_AN_IMAGE * len(items))
        return [self._answer] * len(items)


def _load(folder: Path, card: Card, place: Device) -> Any:
    return Null(card)


TASKS["classification"] = dataclasses.replace(TASKS["classification"], load=_load)
device.likely_gpu = lambda *_: True  # batches are then as large as a GPU's

from service import Vision  # noqa: E402  BentoML asks for it here, after the classifier has become a null one

__all__ = ["Vision"]
