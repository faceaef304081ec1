"""How requests are read and answers are written. With door.py and service.py the only room that knows HTTP."""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from bentoml import IODescriptor
from pydantic import Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse

from vision.errors import KINDS, Code, VisionError
from vision.schemas import AnalyzeOptions, CaptionOptions, ClassifyOptions, DetectOptions, Failure, Options
from vision.settings import SETTINGS

LIST_OPTIONS = ("features", "labels")

MAX_COMMAS = 1_000
"""In a JSON body. base64 has none, so this bounds the values: millions of them would fill the memory."""

ERROR_CODE = "x-error-code"
"""Header of every error answer of ours; the Door replaces those without it."""


@dataclass
class Facts:
    """What is told of a request beside its answer: in errors, in the log."""

    request_id: str
    caller: str  # a key's name, or the connection's address: whoever the work is counted for; it is told nowhere
    images: int = 0
    models: list[str] = field(default_factory=list)


FACTS: ContextVar[Facts] = ContextVar("facts")


class Pictures(IODescriptor):
    """Base of the requests: pictures beside an endpoint's options, as multipart files or as base64 in JSON.

    BentoML makes the endpoint's documentation and its clients' calls from the fields. It does not parse the body:
    its own parser fetches URLs for a client, spools pictures to disk and has no limits.
    """

    images: list[Path] = Field(min_length=1, max_length=SETTINGS.max_images, description="The pictures.")

    options: ClassVar[type[Options]]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:
        """Fill `images` with a list of bytes or VisionError, or with one VisionError when all of the request failed."""
        try:
            images, fields = await _read(request)
            options = _validate(cls.options, fields)
        except VisionError as error:
            return cls.model_construct(images=error)
        return cls.model_construct(images=images, **options.model_dump())


class ClassifyRequest(Pictures, ClassifyOptions):
    options: ClassVar[type[Options]] = ClassifyOptions


class CaptionRequest(Pictures, CaptionOptions):
    options: ClassVar[type[Options]] = CaptionOptions


class DetectRequest(Pictures, DetectOptions):
    options: ClassVar[type[Options]] = DetectOptions


class AnalyzeRequest(Pictures, AnalyzeOptions):
    options: ClassVar[type[Options]] = AnalyzeOptions


class Results(IODescriptor):
    """An answer as BentoML's clients see it; openapi.py has each endpoint's exact form."""

    results: list[dict[str, Any]]


# --- reading -------------------------------------------------------------------------------------


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


# --- answering -----------------------------------------------------------------------------------


def answer(results: list[dict[str, Any]]) -> JSONResponse:
    """200 when a picture succeeded; else the status of the first error, which then stands before the results."""
    failures = [result["error"] for result in results if "error" in result]
    for failure in failures:
        failure["request_id"] = FACTS.get().request_id
    if len(failures) < len(results):
        return JSONResponse({"results": results})
    return _failed(Code(failures[0]["code"]), {"error": failures[0], "results": results})


def refusal(error: VisionError) -> JSONResponse:
    """The answer when a request fails as a whole."""
    body = Failure.of(error).model_dump(mode="json")
    body["error"]["request_id"] = FACTS.get().request_id
    return _failed(error.code, body)


def readiness(ready: bool, runners: dict[str, str]) -> JSONResponse:
    """200 or 503, with the state of each runner."""
    told = {"ready": ready, "runners": runners}
    if ready:
        return JSONResponse(told)
    failure = Failure.of(VisionError(Code.UNAVAILABLE, "Not ready; try again in a moment.")).model_dump(mode="json")
    failure["error"]["request_id"] = FACTS.get().request_id
    return _failed(Code.UNAVAILABLE, {**failure, **told})


def _failed(code: Code, body: dict[str, Any]) -> JSONResponse:
    return JSONResponse(body, KINDS[code].status, {ERROR_CODE: code})
