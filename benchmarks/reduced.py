"""python -m benchmarks.reduced PHOTOS [--side 4000] [--limit N]: what a reduced decode changes in answers.

PHOTOS is a folder with boxes, in YOLO's or COCO's layout (COCO128, say). Each photograph is enlarged, given a sensor's
noise and saved as a phone would, and looked at three ways: `full`, every pixel decoded and handed to the model, which
resizes it as its library does; `reduced`, as the service does (images.decode_reduced); `twice`, decoded in full and
resized to 1,280 pixels before the model resizes it again, as the service did before. Prints how the starters' answers
differ from `full`: labels, scores, average precision; and what decoding and resizing take.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks import weights
from testkit.photographs import encoded
from train_and_save.datasets import Boxed, read_boxes
from train_and_save.measure.answers import Detected
from vision.bento import store
from vision.core import colours, images
from vision.core.device import CPU
from vision.core.schemas import Item, Options
from vision.tasks import TASKS
from vision.tasks.classification.spec import ClassifyOptions
from vision.tasks.detection.spec import Detection, DetectOptions

WAYS: dict[str, Callable[[bytes], Image.Image]] = {
    "full": images.decode,
    "reduced": lambda data: images.decode_reduced(data)[0],
    "twice": lambda data: Image.fromarray(images.shrink(images.decode(data))),
}
ASKED: dict[str, Options] = {
    "classification": ClassifyOptions(top_k=1000),
    "detection": DetectOptions(min_score=0.05),
}
NOISE = 5  # standard deviation of a level


class Looks:
    """The starters' answers about photographs, seen in each way."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._models = {task: TASKS[task].load(folder, store.verify(folder), CPU) for task, folder in folders.items()}
        self._shrink = {task: TASKS[task].load_shrink(folder) for task, folder in folders.items()}
        self.scores: dict[str, list[dict[str, float]]] = defaultdict(list)
        self.objects: dict[str, list[Detection]] = defaultdict(list)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, data: bytes, size: tuple[int, int]) -> None:
        for name, way in WAYS.items():
            start = perf_counter()
            picture = way(data)
            shown = {
                task: np.asarray(picture) if name == "full" else colours.to_srgb(self._shrink[task](picture), picture)
                for task in ASKED
            }
            self.seconds[name].append(perf_counter() - start)
            answers: dict[str, Any] = {
                task: self._models[task].predict([Item(shown[task], size, options)])[0]
                for task, options in ASKED.items()
            }
            self.scores[name].append({label.label: label.score for label in answers["classification"].labels})
            self.objects[name].append(answers["detection"])

    def figures(self, photos: Sequence[Boxed], labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """By way; `margin` is the largest lead that a label of `full` had over the next and lost."""
        return {name: self._figures(name, photos, labels) for name in WAYS}

    def _figures(self, name: str, photos: Sequence[Boxed], labels: Sequence[str]) -> dict[str, float]:
        moved: list[float] = []
        margins: list[float] = []
        for full, other in zip(self.scores["full"], self.scores[name], strict=True):
            first, second = list(full)[:2]  # best first
            moved.append(abs(full[first] - other[first]))
            if next(iter(other)) != first:
                margins.append(full[first] - full[second])
        ap = Detected(photos, self.objects[name], labels).metrics(np.arange(len(photos)))["ap"]
        return {
            "top1_agreement": 1 - len(margins) / len(moved),
            "margin": max(margins, default=0.0),
            "score_moved_median": float(np.median(moved)),
            "score_moved_most": max(moved),
            "ap": float(ap),
            "ms": float(np.median(self.seconds[name])) * 1000,
        }


def enlarged(photo: Path, side: int, random: np.random.Generator) -> bytes:
    """A JPEG as a phone with many pixels would have written it."""
    image = Image.open(photo).convert("RGB")
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    levels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    levels += random.standard_normal(levels.shape, np.float32) * NOISE
    return encoded(Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)), "JPEG", quality=92)


def measure(folders: dict[str, Path], data: Path, side: int, limit: int | None = None) -> dict[str, dict[str, float]]:
    photos, labels = read_boxes(data)
    photos, random, looks = photos[:limit], np.random.default_rng(0), Looks(folders)
    for photo in tqdm(photos, unit="photo"):
        looks.add(enlarged(photo.path, side, random), photo.size)
    return looks.figures(photos, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--side", type=int, default=4000, help="longer side of the enlarged photographs, in pixels")
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    with TemporaryDirectory() as home:
        cases = weights.starters(Path(home), list(ASKED))
        print(json.dumps(measure({c.task: c.saved for c in cases}, asked.photos, asked.side, asked.limit), indent=1))


if __name__ == "__main__":
    main()
