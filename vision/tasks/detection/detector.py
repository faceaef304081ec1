"""Detection: the steps that every detector shares; the networks behind them are NanoDet, YOLO or transformers'."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vision.core import images
from vision.core.device import Device
from vision.core.errors import Code, VisionError
from vision.core.pixels import Shrink
from vision.core.schemas import Card, Item, Model, Pixels
from vision.tasks.detection.boxes import Found, fit
from vision.tasks.detection.spec import DetectedObject, Detection, DetectOptions


class DetectorNetwork(Protocol):
    labels: list[str]

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        """Return what scores at least min_score in each picture."""
        ...


def load_network(folder: Path, device: Device) -> DetectorNetwork:
    """Load the network that config.json's model_type names."""
    # Imported one by one: a process should hold only the libraries of its own network.
    match json.loads((folder / "config.json").read_text())["model_type"]:
        case "nanodet":
            from vision.tasks.detection.nanodet import NanoDetNetwork

            return NanoDetNetwork(folder, device.name, device.how)
        case "yolo":
            from vision.tasks.detection.yolo import YoloNetwork

            return YoloNetwork(folder, device.name, device.how)
        case _:
            from vision.tasks.detection import detr_graph

            if device.how is None and detr_graph.is_saved(folder, device.name):
                return detr_graph.GraphDetr(folder)
            from vision.tasks.detection.detr import DetrNetwork

            return DetrNetwork(folder, device.name, device.how)


def load_shrink(folder: Path) -> Shrink:
    """Return the Shrink of what load_network loads."""
    config = json.loads((folder / "config.json").read_text())
    match config["model_type"]:
        case "nanodet":
            from vision.tasks.detection.nanodet import SIDE

            side = SIDE
        case "yolo":
            side = config["side"]
        case _:
            return images.shrink
    return lambda picture: fit(np.asarray(picture), side) if max(picture.size) > side else np.asarray(picture)


class Detector:
    def __init__(self, folder: Path, card: Card, device: Device) -> None:
        """Load from a folder with config.json and weights as safetensors."""
        self.card = card
        self.network = load_network(folder, device)

    def predict(self, items: Sequence[Item[DetectOptions]]) -> list[Detection | VisionError]:
        """Return one result an item, in order; an unknown label in an item's filter is that item's error."""
        min_score = min(item.options.min_score for item in items)
        found = self.network.find([item.pixels for item in items], min_score)
        return [self._postprocess(*pair) for pair in zip(found, items, strict=True)]

    def _postprocess(self, found: Found, item: Item[DetectOptions]) -> Detection | VisionError:
        try:
            wanted = self._wanted(item.options.labels)
        except VisionError as error:
            return error
        [kept] = ((found.scores >= item.options.min_score) & wanted[found.classes]).nonzero()
        scores, classes, boxes = (part[kept[: item.options.max_detections]] for part in found)
        parts = (
            scores.astype(float).round(6),
            classes,
            (boxes * (2 * item.size)).round(2),
            boxes.astype(float).round(6),
        )
        objects = [
            DetectedObject(label=self.network.labels[label], score=score, box=box, box_normalized=normalized)
            for score, label, box, normalized in zip(*(part.tolist() for part in parts), strict=True)
        ]
        return Detection(objects=objects, model=Model.of(self.card))

    def _wanted(self, names: list[str] | None) -> NDArray[np.bool_]:
        """Return a mask (labels,) of the labels an item wants to keep."""
        labels = self.network.labels
        for name in names or []:
            if name not in labels:
                near = difflib.get_close_matches(name, labels, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                if "," in name and {one.strip() for one in name.split(",")} <= set(labels):
                    hint = " Labels may hold commas: repeat `labels`, once for each."
                raise VisionError(Code.INVALID_OPTION, f"labels: {self.card.name} knows no {name!r}.{hint}")
        return np.array([names is None or label in names for label in labels])
