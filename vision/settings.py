"""What an operator may set, from the environment; validated when the service starts."""

import os
import sys
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from vision.schemas import Task

PREFIX = "VISION_"


class Settings(BaseSettings):
    """Each field is the environment variable VISION_<NAME>, for example VISION_DEVICE=cpu."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    classification_model: str = Field("efficientnet-lite0", description="Store tag, name or name:version.")
    captioning_model: str = Field("flickr8k-captioner", description="Store tag, name or name:version.")
    detection_model: str = Field("nanodet-g", description="Store tag, name or name:version.")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")

    max_images: int = Field(16, ge=1, le=64, description="Pictures in a request.")
    max_image_bytes: int = Field(20_000_000, ge=1, description="Bytes of a picture.")
    max_request_bytes: int = Field(64_000_000, ge=1, description="Bytes of a request's body.")
    max_pixels: int = Field(75_000_000, ge=1, le=178_000_000, description="Width times height of a picture.")

    def tag(self, task: Task) -> str:
        """The store tag of the model that serves a task."""
        return {
            "classification": self.classification_model,
            "captioning": self.captioning_model,
            "detection": self.detection_model,
        }[task]


def _load() -> Settings:
    """Read the environment; a bad value or a misspelt name ends the process with a line that names it."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            sys.exit(f"{name} is no setting. Known are {', '.join(known)}.")
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        sys.exit(f"{PREFIX}{str(problem['loc'][0]).upper()}={problem['input']}: {problem['msg']}.")


SETTINGS = _load()
