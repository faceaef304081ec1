"""A null classifier: it takes as long as a GPU would, and no CPU."""

import time
from collections.abc import Sequence
from typing import Any

from vision.core.schemas import Card, Item, Model
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
