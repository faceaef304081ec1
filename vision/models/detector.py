"""Detection: the steps that every detector shares; the networks behind them are NanoDet, YOLO or transformers'."""

import difflib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from vision import images
from vision.errors import Code, VisionError
from vision.models.pixels import Shrink
from vision.schemas import Card, DetectedObject, Detection, DetectOptions, Item, Model, Pixels

if TYPE_CHECKING:
    from vision.models.cuda import Plan


class Found(NamedTuple):
    """What a network found in one picture, overlaps removed, best first.

    scores (N,), 0-1; classes (N,), int64 indices of its labels; boxes (N, 4), xyxy normalised 0-1.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    boxes: NDArray[np.float32]


class Network(Protocol):
    labels: list[str]

    def find(self, pictures: Sequence[Pixels], min_score: float) -> list[Found]:
        """Return what scores at least min_score in each picture."""
        ...


def load_network(folder: Path, device: str, how: "Plan | None" = None) -> Network:
    """Load the network that config.json's model_type names."""
    # Imported one by one: a process should hold only the libraries of its own network.
    match json.loads((folder / "config.json").read_text())["model_type"]:
        case "nanodet":
            from vision.models.nanodet import NanoDetNetwork

            return NanoDetNetwork(folder, device, how)
        case "yolo":
            from vision.models.yolo import YoloNetwork

            return YoloNetwork(folder, device, how)
        case _:
            from vision.models.detr import DetrNetwork

            return DetrNetwork(folder, device, how)


def by_shape(inputs: Sequence[Any]) -> list[list[int]]:
    """Return the indices of those that may stand in one batch without padding."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(inputs):
        groups[tuple(one.shape)].append(index)
    return list(groups.values())


def load_shrink(folder: Path) -> Shrink:
    """Return the Shrink of what load_network loads."""
    config = json.loads((folder / "config.json").read_text())
    match config["model_type"]:
        case "nanodet":
            from vision.models.nanodet import SIDE

            side = SIDE
        case "yolo":
            side = config["side"]
        case _:
            return images.shrink
    return lambda picture: fit(np.asarray(picture), side) if max(picture.size) > side else np.asarray(picture)


def fit(pixels: Pixels, side: int) -> Pixels:
    """Resize a picture so that its longer side is `side`, up or down; no side is under 1.

    Plain bilinear, as NanoDet and YOLO were trained with: antialiased shrinking costs NanoDet-g 0.012 AP on 128 COCO
    photographs.
    """
    scale = side / max(pixels.shape[:2])
    width, height = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))


def place(boxes: NDArray[np.float32], box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Boxes xyxy (N, 4) in a network's input -> normalised 0-1 in the picture, which lies in `box` there."""
    x1, y1, x2, y2 = box
    placed = (boxes - np.array([x1, y1, x1, y1])) / np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    return placed.clip(0, 1).astype(np.float32)


def without_overlaps(
    classes: NDArray[np.int64], boxes: NDArray[np.float32], iou: float, most: int
) -> NDArray[np.int64]:
    """Class-wise non-maximum suppression of boxes xyxy (N, 4), best first: return the indices of `most` at most.

    In OpenCV's, thousands of boxes take ten times as long.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        width = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
        height = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
        shared = width.clip(0) * height.clip(0)
        overlaps = shared > iou * (areas[best] + areas[left] - shared)
        left = left[~overlaps | (classes[left] != classes[best])]
    return np.array(kept, np.int64)


class Detector:
    def __init__(self, folder: Path, card: Card, device: str, how: "Plan | None" = None) -> None:
        """Load from a folder with config.json and weights as safetensors."""
        self.card = card
        self.network = load_network(folder, device, how)

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
        kept = ((found.scores >= item.options.min_score) & wanted[found.classes]).nonzero()[0]
        objects = [
            self._object(label, score, corners, item.size)
            for score, label, corners in zip(
                *(part[kept[: item.options.max_detections]].tolist() for part in found), strict=True
            )
        ]
        return Detection(objects=objects, model=Model.of(self.card))

    def _wanted(self, names: list[str] | None) -> NDArray[np.bool_]:
        """Return a mask (labels,) of the labels an item wants to keep."""
        labels = self.network.labels
        for name in names or []:
            if name not in labels:
                near = difflib.get_close_matches(name, labels, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise VisionError(Code.INVALID_OPTION, f"labels: {self.card.name} knows no {name!r}.{hint}")
        return np.array([names is None or label in names for label in labels])

    def _object(self, label: int, score: float, corners: list[float], size: tuple[int, int]) -> DetectedObject:
        x1, y1, x2, y2 = corners
        width, height = size
        return DetectedObject(
            label=self.network.labels[label],
            score=round(score, 6),
            box=(round(x1 * width, 2), round(y1 * height, 2), round(x2 * width, 2), round(y2 * height, 2)),
            box_normalized=(round(x1, 6), round(y1, 6), round(x2, 6), round(y2, 6)),
        )
