"""How requests are read: pictures as files of a form or as base64 in JSON, beside an endpoint's options."""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, create_model
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vision.api.endpoints import Endpoint, Wanted
from vision.api.facts import FACTS
from vision.core.errors import Code, VisionError
from vision.core.schemas import Options
from vision.settings import SETTINGS

LIST_OPTIONS = ("features", "labels")

MAX_COMMAS = 1_000
"""In a JSON body. base64 has none, so this bounds the values: millions of them would fill the memory."""


@dataclass(frozen=True)
class Asked:
    """A request, read: its pictures (or why one cannot be had), and what it wants to know of each."""

    images: list[bytes | VisionError]
    wanted: list[Wanted]


def fields(endpoint: Endpoint) -> type[BaseModel]:
    """The fields of an endpoint's request, for documents and generated clients."""
    images = Field(min_length=1, max_length=SETTINGS.max_images, description="The pictures.")
    return create_model("Fields", __base__=endpoint.options, images=(list[Path], images))


async def read(request: Request, endpoint: Endpoint) -> Asked:
    """Read a request. Raises VisionError where all of it fails."""
    images, given = await _read(request)
    return Asked(images, endpoint.wanted(_validate(endpoint.options, given)))


async def _read(request: Request) -> tuple[list[bytes | VisionError], dict[str, Any]]:
    """Return a request's pictures and its option fields, not validated yet."""
    if request.headers["content-type"].lower().startswith("multipart/"):
        images, fields = await _read_form(request)
    else:
        images, fields = await asyncio.to_thread(_read_json, await request.body())
    if not images:
        raise VisionError(Code.MISSING_IMAGE, "Send at least one picture in `images`.")
    if len(images) > SETTINGS.max_images:
        raise VisionError(
            Code.TOO_MANY_IMAGES, f"{len(images)} pictures in one request; at most {SETTINGS.max_images} are taken."
        )
    FACTS.get().images = len(images)
    return images, fields


class InMemoryParser(MultiPartParser):
    spool_max_size = 2**31  # people's photos do not touch the disk
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _read_form(request: Request) -> tuple[list[bytes | VisionError], dict[str, Any]]:
    _, parameters = parse_options_header(request.headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise VisionError(Code.MALFORMED_REQUEST, "Forms are read as UTF-8; send no other charset.")
    try:
        parser = InMemoryParser(request.headers, request.stream())
        form = await parser.parse()
    except MultiPartException as error:
        raise VisionError(Code.MALFORMED_REQUEST, f"The multipart body cannot be read: {error.message}") from error
    if not parser.ended:  # the part that was cut would be missing silently
        raise VisionError(Code.MALFORMED_REQUEST, "The multipart body ends early: its final boundary is missing.")
    images = [await _file(part) for part in form.getlist("images")]
    fields = {name: _option(name, form.getlist(name)) for name in form if name != "images"}
    return images, {name: value for name, value in fields.items() if value is not None}


async def _file(part: UploadFile | str) -> bytes | VisionError:
    if isinstance(part, UploadFile):
        return await part.read()
    return VisionError(Code.NOT_A_FILE, "`images` holds text; send a file (curl: -F images=@photo.jpg).")


def _option(name: str, parts: Sequence[UploadFile | str]) -> Any:
    """An option in a form: text, JSON text as BentoML's client sends it, or a repeated field for a list."""
    values = [part for part in parts if isinstance(part, str)]
    if len(values) < len(parts):
        raise VisionError(Code.INVALID_OPTION, f"{name} is a file; only `images` takes files.")
    if len(values) == 1 and (values[0] == "null" or values[0].startswith("[")):
        try:
            return json.loads(values[0])
        except (ValueError, RecursionError) as error:
            raise VisionError(Code.INVALID_OPTION, f"{name} begins like JSON but is none.") from error
    if name in LIST_OPTIONS:
        return values
    if len(values) > 1:
        raise VisionError(Code.INVALID_OPTION, f"{name} is given {len(values)} times.")
    return values[0]


def _read_json(body: bytes) -> tuple[list[bytes | VisionError], dict[str, Any]]:
    if body.count(b",") > MAX_COMMAS:
        raise VisionError(Code.MALFORMED_REQUEST, f"The JSON has more than {MAX_COMMAS:,} values.")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise VisionError(Code.MALFORMED_REQUEST, "The body is no JSON.") from error
    if not isinstance(fields, dict):
        raise VisionError(Code.MALFORMED_REQUEST, "The body is no JSON object.")
    images = fields.pop("images", [])
    if not isinstance(images, list):
        raise VisionError(Code.MALFORMED_REQUEST, "`images` is no list of base64 strings.")
    return [_base64(image) for image in images], {name: value for name, value in fields.items() if value is not None}


def _base64(text: Any) -> bytes | VisionError:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return VisionError(
            Code.INVALID_BASE64,
            "Not the base64 of a picture's bytes. Nothing is fetched; of a data: URL send what follows the comma.",
        )


def _validate(options: type[Options], fields: dict[str, Any]) -> Options:
    try:
        return options.model_validate(fields)
    except ValidationError as error:
        known = ", ".join(["images", *options.model_fields])
        problems = [
            f"unknown option {str(problem['loc'][0])[:50]!r}, known are {known}"
            if problem["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise VisionError(Code.INVALID_OPTION, "; ".join(problems)) from error
