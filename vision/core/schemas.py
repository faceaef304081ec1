"""The contract that all tasks share: options that go in, results that come out. The same for endpoints and bulk rows.

Scores lie in 0-1. Boxes are (x1, y1, x2, y2): left, top, right, bottom. Sizes are in pixels. What a task adds stands in
its own folder (vision/tasks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from vision.core.errors import KINDS, Code, VisionError

Pixels = NDArray[np.uint8]
"""RGB picture, shape (height, width, 3), dtype uint8, 0-255."""

MinScore = Annotated[float, Field(ge=0, le=1, description="Leave out what scores less.")]


class Options(BaseModel):
    """Base of all options: an unknown name is refused, never ignored."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take true for 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("boolean", "true and false are no value of this option")
        return value


@dataclass(frozen=True)
class Marks:
    """What a result says that can be drawn on its picture.

    boxes: label, score, and the box normalised to 0-1, best first. lines: what stands below the picture.
    """

    boxes: Sequence[tuple[str, float, tuple[float, float, float, float]]] = ()
    lines: Sequence[str] = ()


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Item(Generic[OptionsT]):
    """One picture on its way into a model.

    pixels: what the model looks at; may be smaller than the picture was.
    size: (width, height) of the oriented original; boxes are given in its pixels.
    """

    pixels: Pixels
    size: tuple[int, int]
    options: OptionsT


class Model(BaseModel):
    """Which model gave a result."""

    name: str
    version: str
    source: str

    @classmethod
    def of(cls, card: "Card") -> "Model":
        return cls(name=card.name, version=card.version, source=card.source)


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

    def as_error(self) -> VisionError:
        return VisionError(self.error.code, self.error.message)


class Size(BaseModel):
    """The picture's size in pixels after its EXIF orientation was applied."""

    width: int
    height: int


class Quality(BaseModel):
    """How a picture is as a photograph; core/quality.py has the formulas."""

    brightness: float = Field(description="Mean luma, 0-1.")
    contrast: float = Field(description="Standard deviation of luma, 0-0.5.")
    sharpness: float = Field(description="Variance of the Laplacian of luma in levels of 255, 0 or more.")
    hash: str = Field(pattern="^[0-9a-f]{16}$", description="Perceptual: near copies differ in few of its 64 bits.")


Milliseconds = Annotated[
    dict[str, float],
    Field(description="`decode`; for each task run its name (queue and inference); `render`, if asked; `total`."),
]


class PictureResult(BaseModel):
    size: Size
    ms: Milliseconds


class Card(BaseModel):
    """What is known of a model; stands beside its weights as card.json."""

    task: str
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
        description="Images/s by engine where the model was saved, or on the machine that the name begins with; "
        "a CPU is served by the fastest.",
    )
    half: Literal["bfloat16", "float16"] = Field(
        "bfloat16", description="The half precision of GPUs where `optimize` has measured nothing."
    )
    sha256: dict[str, str] = Field(default_factory=dict, description="Digest of each file beside the card.")
