"""Classification in words: which labels fit a picture."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from vision.core.device import Device
from vision.core.pixels import load_shrink
from vision.core.predictor import Predictor
from vision.core.schemas import Card, Marks, MinScore, Model, Options
from vision.core.task import Task

TopK = Annotated[int, Field(ge=1, le=1000, description="How many labels at most, best first.")]


class ClassifyOptions(Options):
    top_k: TopK = 5
    min_score: MinScore = 0.0


class Label(BaseModel):
    label: str
    score: float


class Classification(BaseModel):
    labels: list[Label] = Field(description="Best first.")
    model: Model


def marks(found: Classification) -> Marks:
    best = [f"{one.label.split(',')[0]} {one.score:.0%}" for one in found.labels[:3]]
    return Marks(lines=[" · ".join(best)])


def load(folder: Path, card: Card, device: Device) -> Predictor:
    from vision.tasks.classification.classifier import Classifier

    return Classifier(folder, card, device)


KEPT_LABELS = 50


def widen(options: ClassifyOptions) -> ClassifyOptions:
    return ClassifyOptions(top_k=max(KEPT_LABELS, options.top_k), min_score=0)


def narrow(result: Classification, options: ClassifyOptions) -> Classification:
    labels = [label for label in result.labels[: options.top_k] if label.score >= options.min_score]
    return result.model_copy(update={"labels": labels})


CLASSIFICATION = Task(
    name="classification",
    endpoint="classify",
    summary="Label each picture: the `top_k` best labels with their scores.",
    options=ClassifyOptions,
    result=Classification,
    starter="efficientnet-lite0",
    load=load,
    load_shrink=load_shrink,
    widen=widen,
    narrow=narrow,
    marks=marks,
)
