"""The contract: options that go in, results that come out. The same for endpoints and bulk rows.

Scores lie in 0-1. Boxes are (x1, y1, x2, y2): left, top, right, bottom. Sizes are in pixels.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from vision.core.errors import KINDS, Code, VisionError

Task = Literal["classification", "captioning", "detection"]
TASKS: tuple[Task, ...] = ("classification", "captioning", "detection")

Pixels = NDArray[np.uint8]
"""RGB picture, shape (height, width, 3), dtype uint8, 0-255."""


# Options: what a caller may choose for each picture.

TopK = Annotated[int, Field(ge=1, le=1000, description="How many labels at most, best first.")]
MinScore = Annotated[float, Field(ge=0, le=1, description="Leave out what scores less.")]
MaxNewTokens = Annotated[
    int | None, Field(ge=1, le=128, description="Longest caption in tokens; by default the model's own.")
]
NumBeams = Annotated[
    int | None, Field(ge=1, le=8, description="Beams of the search, 1 is greedy; by default the model's own.")
]
MaxDetections = Annotated[int, Field(ge=1, le=300, description="How many objects at most, best first.")]
Labels = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
    Field(min_length=1, max_length=100, description="Keep only objects with one of these labels."),
]
Features = Annotated[list[Task], Field(min_length=1, max_length=len(TASKS), description="Which of the three to run.")]


class Options(BaseModel):
    """Base of all options: an unknown name is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_boolean(cls, value: Any) -> Any:
        # pydantic would take true for 1, and no option is a yes or no
        if isinstance(value, bool):
            raise PydanticCustomError("boolean", "true and false are no value of this option")
        return value


class ClassifyOptions(Options):
    top_k: TopK = 5
    min_score: MinScore = 0.0


class CaptionOptions(Options):
    max_new_tokens: MaxNewTokens = None
    num_beams: NumBeams = None


class DetectOptions(Options):
    min_score: MinScore = 0.25
    max_detections: MaxDetections = 100
    labels: Labels = None


OPTIONS: dict[Task, type[Options]] = {
    "classification": ClassifyOptions,
    "captioning": CaptionOptions,
    "detection": DetectOptions,
}


class AnalyzeOptions(Options):
    features: Features = list(TASKS)
    top_k: TopK = 5
    min_score: Annotated[
        float | None,
        Field(ge=0, le=1, description="For labels and objects alike; by default 0 for labels, 0.25 for objects."),
    ] = None
    max_new_tokens: MaxNewTokens = None
    num_beams: NumBeams = None
    max_detections: MaxDetections = 100
    labels: Labels = None

    def by_task(self) -> dict[Task, Options]:
        """Return the options of each task asked for."""
        chosen = self.model_dump(exclude_none=True)
        return {
            task: OPTIONS[task](**{name: chosen[name] for name in OPTIONS[task].model_fields if name in chosen})
            for task in dict.fromkeys(self.features)
        }


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Item(Generic[OptionsT]):
    """One picture on its way into a model.

    pixels: what the model looks at; may be smaller than the picture was.
    size: (width, height) of the oriented original, in whose pixels boxes are given.
    """

    pixels: Pixels
    size: tuple[int, int]
    options: OptionsT


# Results: what a caller gets for each picture.


class Model(BaseModel):
    """Which model gave a result."""

    name: str
    version: str
    source: str

    @classmethod
    def of(cls, card: "Card") -> "Model":
        return cls(name=card.name, version=card.version, source=card.source)


class Label(BaseModel):
    label: str
    score: float


class Classification(BaseModel):
    labels: list[Label] = Field(description="Best first.")
    model: Model


class Caption(BaseModel):
    caption: str
    model: Model


class DetectedObject(BaseModel):
    label: str
    score: float
    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of `size`.")
    box_normalized: tuple[float, float, float, float] = Field(description="The same box, 0-1.")


class Detection(BaseModel):
    objects: list[DetectedObject] = Field(description="Best first.")
    model: Model


class ErrorBody(BaseModel):
    code: Code
    message: str
    retryable: bool = Field(description="Whether the same request may succeed when it is sent again.")
    request_id: str | None = Field(None, description="Names the request in the logs, as the header X-Request-ID does.")


class Failure(BaseModel):
    """What stands in a result's place where it failed."""

    error: ErrorBody

    @classmethod
    def of(cls, error: VisionError) -> "Failure":
        return cls(error=ErrorBody(code=error.code, message=error.message, retryable=KINDS[error.code].retryable))


class Size(BaseModel):
    """The picture's size in pixels after its EXIF orientation was applied."""

    width: int
    height: int


Milliseconds = Annotated[
    dict[str, float],
    Field(description="`decode`; for each task run its name (queue and inference); `total`."),
]


class PictureResult(BaseModel):
    size: Size
    ms: Milliseconds


class ClassifyResult(PictureResult, Classification):
    pass


class CaptionResult(PictureResult, Caption):
    pass


class DetectResult(PictureResult, Detection):
    pass


class AnalyzeResult(PictureResult):
    """Only the features that were asked for are present."""

    classification: Classification | Failure | None = None
    captioning: Caption | Failure | None = None
    detection: Detection | Failure | None = None


class Card(BaseModel):
    """What is known of a model; stands beside its weights as card.json."""

    task: Task
    name: str
    version: str = Field("", description="Digest of the files, set when the model is saved.")
    architecture: str = Field(description="The network, and how vision/tasks/ loads it.")
    source: str
    licence: str
    description: str
    preprocessing: str
    labels: int | None = Field(description="How many labels it knows; none for captions.")
    input_size: tuple[int, int] = Field(description="(width, height) of what the network sees.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Measured or published, as each name says.")
    engines: dict[str, float] = Field(
        default_factory=dict,
        description="Images/s by engine where the model was saved; a CPU is served by the fastest.",
    )
    sha256: dict[str, str] = Field(default_factory=dict, description="Digest of each file beside the card.")
