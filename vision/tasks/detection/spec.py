"""Detection in words: which objects a picture shows, and where."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from vision.core.device import Device
from vision.core.pixels import Shrink
from vision.core.predictor import Predictor
from vision.core.schemas import Card, Marks, MinScore, Model, Options
from vision.core.task import Task

MaxDetections = Annotated[int, Field(ge=1, le=300, description="How many objects at most, best first.")]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
    Field(min_length=1, max_length=100, description="Keep only objects with one of these labels."),
]


class DetectOptions(Options):
    min_score: MinScore = 0.25
    max_detections: MaxDetections = 100
    labels: Labels = None


class DetectedObject(BaseModel):
    label: str
    score: float
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of `size`.")
    box_normalized: tuple[float, float, float, float] = Field(description="The same box, 0-1.")


class Detection(BaseModel):
    objects: list[DetectedObject] = Field(description="Best first.")
    model: Model


def marks(found: Detection) -> Marks:
    return Marks(boxes=[(one.label, one.score, one.box_normalized) for one in found.objects])


def load(folder: Path, card: Card, device: Device) -> Predictor:
    from vision.tasks.detection.detector import Detector

    return Detector(folder, card, device)


def load_shrink(folder: Path) -> Shrink:
    from vision.tasks.detection import detector

    return detector.load_shrink(folder)


KEPT_SCORE, MOST = 0.05, 300


def widen(options: DetectOptions) -> DetectOptions:
    return DetectOptions(min_score=min(KEPT_SCORE, options.min_score), max_detections=MOST)


def narrow(result: Detection, options: DetectOptions) -> Detection:
    names = options.labels
    kept = [one for one in result.objects if one.score >= options.min_score and (names is None or one.label in names)]
    return result.model_copy(update={"objects": kept[: options.max_detections]})


DETECTION = Task(
    name="detection",
    endpoint="detect",
    summary="Find the objects in each picture: label, score and box.",
    options=DetectOptions,
    result=Detection,
    starter="nanodet-g",
    load=load,
    load_shrink=load_shrink,
    widen=widen,
    narrow=narrow,
    marks=marks,
)
