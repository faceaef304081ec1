"""This service with a null classifier: it takes as long as a GPU would, and no CPU. `benchmarks.feed` runs it.

What is left is the work of the processes that feed the card.
"""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.servers.null import Null
from vision.core import device
from vision.core.device import Device
from vision.core.schemas import Card
from vision.tasks import TASKS


def _load(folder: Path, card: Card, place: Device) -> Any:
    return Null(card)


TASKS["classification"] = dataclasses.replace(TASKS["classification"], load=_load)
device.likely_gpu = lambda *_: True  # batches are then as large as a GPU's

from service import Vision  # noqa: E402  BentoML asks for it here, after the classifier has become a null one

__all__ = ["Vision"]
