"""Captioning in words: a sentence about a picture."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from vision.core.device import Device
from vision.core.pixels import load_shrink
from vision.core.predictor import Predictor
from vision.core.schemas import Card, Marks, Model, Options
from vision.core.task import Task

MaxNewTokens = Annotated[
    int | None, Field(ge=1, le=128, description="Longest caption in tokens; by default the model's own.")
]
NumBeams = Annotated[
    int | None, Field(ge=1, le=8, description="Beams of the search, 1 is greedy; by default the model's own.")
]


class CaptionOptions(Options):
    max_new_tokens: MaxNewTokens = None
    num_beams: NumBeams = None


class Caption(BaseModel):
    caption: str
    model: Model


def marks(found: Caption) -> Marks:
    return Marks(lines=[found.caption])


def load(folder: Path, card: Card, device: Device) -> Predictor:
    from vision.tasks.captioning.captioner import Captioner

    return Captioner(folder, card, device)


CAPTIONING = Task(
    name="captioning",
    endpoint="caption",
    summary="Say in a sentence what each picture shows.",
    options=CaptionOptions,
    result=Caption,
    starter="flickr8k-captioner",
    load=load,
    load_shrink=load_shrink,
    marks=marks,
    beside=4,  # sentences take long
)
