"""What an operator may set, from the environment; validated when the service starts."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationError, create_model
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vision.core import device
from vision.core.images import FORMATS, Format, Limits
from vision.insights import rules
from vision.tasks import TASKS

PREFIX = "VISION_"

FOREIGN = ("VISION_KEY", "VISION_ENDPOINT")
"""Variables of Azure's client, which lie in many environments: no settings, and no misspelt ones."""


def _models() -> dict[str, list[str]]:
    """Each task's models: its starter; in a Bento the versions that it was built with, from its bento.yaml."""
    bento = Path(__file__).parents[2] / "bento.yaml"
    if not bento.is_file():
        return {task.name: [task.starter] for task in TASKS.values()}
    services = yaml.load(bento.read_text(), yaml.CSafeLoader)["services"]
    return {service["name"]: [model["tag"] for model in service["models"]] for service in services}


def _split(value: Any) -> Any:
    return [entry.strip() for entry in value.split(",")] if isinstance(value, str) else value


Tags = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]], NoDecode, BeforeValidator(_split), Field(min_length=1)
]


def _split_keys(value: Any) -> Any:
    return dict(entry.strip().partition(":")[::2] for entry in value.split(",")) if isinstance(value, str) else value


def _check_device(value: str) -> str:
    for task in TASKS:
        device.wanted(value, task)
    named = {part.partition("=")[0].strip() for part in value.split(",")} if "=" in value else set()
    if unknown := named - set(TASKS):
        raise ValueError(f"{', '.join(sorted(unknown))} is no task; they are {', '.join(TASKS)}")
    return value


def _load_rules(value: Any) -> Any:
    return rules.load(Path(value)) if isinstance(value, str) else value


InsightsRules = Annotated[rules.Rules, NoDecode, BeforeValidator(_load_rules)]

ApiKeys = Annotated[
    dict[str, Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]], NoDecode, BeforeValidator(_split_keys)
]

Origins = Annotated[
    list[Annotated[str, StringConstraints(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\sA-Z*]+)$")]],
    NoDecode,
    BeforeValidator(_split),
]


class _Settings(BaseSettings):
    """Each field is the environment variable VISION_<NAME>, for example VISION_DEVICE=cpu."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    device: Annotated[str, AfterValidator(_check_device)] = Field(
        "auto",
        description="auto takes a GPU where there is one; cpu, cuda, cuda:1, or a device for each task: "
        "detection=cuda:1,classification=cuda:0.",
    )
    engine_dir: Path | None = Field(
        None, description="Where `optimize` keeps code for this GPU; beside the model in the store where unset."
    )

    workers: int | None = Field(
        None, ge=1, le=64, description="Public processes; by default by cores where there is a GPU, else 1."
    )

    max_images: int = Field(16, ge=1, le=64, description="Pictures in a request.")
    max_image_bytes: int = Field(20_000_000, ge=1, description="Bytes of a picture.")
    max_request_bytes: int = Field(64_000_000, ge=1, description="Bytes of a request's body.")
    max_pixels: int = Field(75_000_000, ge=1, le=178_000_000, description="Width times height of a picture.")
    max_side: int = Field(30_000, ge=1, description="Longer side of a picture in pixels.")
    max_aspect: float = Field(100, ge=1, description="Longer side divided by the shorter.")
    max_pixels_per_byte: float = Field(
        Limits.max_pixels_per_byte,
        gt=0,
        description="Of a picture with more than 10 megapixels; photographs have 2 to 50.",
    )
    formats: list[Format] = Field(list(FORMATS), min_length=1, description="Formats that are decoded, a JSON list.")

    max_in_flight: int = Field(64, ge=1, description="Requests in work at once; more are refused with 503.")
    body_seconds: float = Field(30, gt=0, description="Within which a request's body must have arrived.")
    request_seconds: float = Field(60, gt=0, description="From the whole body to the answer; then 504.")
    drain_seconds: float = Field(
        0, ge=0, description="From SIGTERM, when /readyz says no, until connections are refused."
    )

    api_keys: ApiKeys = Field(
        {}, description="name:sha256 of each key, comma-separated; `python -m vision.api.keys` makes one."
    )
    key_requests_per_minute: int | None = Field(None, ge=1, description="Requests a key may send in a minute.")
    key_in_flight: int | None = Field(None, ge=1, description="Requests a key may have in work at once.")
    key_pixels: int = Field(
        2_400_000_000,
        ge=1,
        description="Pixels of large pictures that a key, or without keys an address, may have in work at once.",
    )
    allow_anonymous: bool = Field(False, description="Serve without keys on an address that others can reach.")

    cors_origins: Origins = Field(
        [], description="Origins whose pages may call, comma-separated: https://photos.example; * is any."
    )

    insights_rules: InsightsRules = Field(
        str(rules.SHIPPED), validate_default=True, description="A file of rules for tips; docs/insights.md explains it."
    )

    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto is text on a terminal, else JSON.")
    otlp_endpoint: str | None = Field(None, description="Where traces go: an OTLP/HTTP address ending in /v1/traces.")

    def limits(self) -> Limits:
        """What a picture may be."""
        return Limits(
            self.max_image_bytes,
            self.max_pixels,
            self.max_side,
            self.max_aspect,
            self.formats,
            self.max_pixels_per_byte,
        )

    def models(self, task: str) -> list[str]:
        """The store tags of a task's models, the default first."""
        tags: list[str] = getattr(self, f"{task}_model")
        return tags


_DEFAULTS = _models()
_OF_TASKS: dict[str, Any] = {
    f"{name}_model": (Tags, Field(_DEFAULTS.get(name, []), description="Models, `name` or `name:version`, by commas."))
    for name in TASKS
}
Settings = create_model("Settings", __base__=_Settings, **_OF_TASKS)


def _load() -> _Settings:
    """Read the environment; a bad value or a misspelt name ends the process with a line that names it."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ:
        if name.startswith(PREFIX) and name not in (*known, *FOREIGN):
            sys.exit(f"{name} is no setting. Known are {', '.join(known)}.")
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        value = "" if name == "api_keys" else f"={problem['input']}"  # somebody may have put the key itself there
        message = problem["msg"].removeprefix("Value error, ")
        sys.exit(f"{PREFIX}{name.upper()}{value}: {message}.")


SETTINGS = _load()
