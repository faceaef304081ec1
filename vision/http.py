"""The door: how requests are read and answers are written. With service.py the only room that knows HTTP."""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from bentoml import IODescriptor
from pydantic import Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision.errors import KINDS, Code, VisionError
from vision.schemas import AnalyzeOptions, CaptionOptions, ClassifyOptions, DetectOptions, Failure, Options
from vision.settings import SETTINGS

LIST_OPTIONS = ("features", "labels")

log = logging.getLogger("bentoml.vision")


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
        images, fields = await asyncio.to_thread(_read_json, b"".join([chunk async for chunk in _capped(request)]))
    if not images:
        raise VisionError(Code.MISSING_IMAGE, "Send at least one picture in `images`.")
    if len(images) > SETTINGS.max_images:
        raise VisionError(
            Code.TOO_MANY_IMAGES, f"{len(images)} pictures in one request; at most {SETTINGS.max_images} are taken."
        )
    return images, fields


async def _capped(request: Request) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > SETTINGS.max_request_bytes:
            raise VisionError(
                Code.REQUEST_TOO_LARGE,
                f"The request is larger than {SETTINGS.max_request_bytes:,} bytes; send fewer pictures.",
            )
        yield chunk


class InMemoryParser(MultiPartParser):
    spool_max_size = 2**31  # people's photos do not touch the disk


async def _read_form(request: Request) -> tuple[list[bytes | VisionError], dict[str, Any]]:
    try:
        form = await InMemoryParser(request.headers, _capped(request)).parse()
    except MultiPartException as error:
        raise VisionError(Code.MALFORMED_REQUEST, f"The multipart body cannot be read: {error.message}") from error
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
        except ValueError as error:
            raise VisionError(Code.INVALID_OPTION, f"{name} begins like JSON but is none.") from error
    if name in LIST_OPTIONS:
        return values
    if len(values) > 1:
        raise VisionError(Code.INVALID_OPTION, f"{name} is given {len(values)} times.")
    return values[0]


def _read_json(body: bytes) -> tuple[list[bytes | VisionError], dict[str, Any]]:
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
            f"unknown option {problem['loc'][0]!r}, known are {known}"
            if problem["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise VisionError(Code.INVALID_OPTION, "; ".join(problems)) from error


# --- answering -----------------------------------------------------------------------------------


def answer(results: list[dict[str, Any]]) -> JSONResponse:
    """200 when a picture succeeded; else the status of the first error, which then stands before the results."""
    failures = [result["error"] for result in results if "error" in result]
    if len(failures) < len(results):
        return JSONResponse({"results": results})
    return JSONResponse({"error": failures[0], "results": results}, KINDS[Code(failures[0]["code"])].status)


def refusal(error: VisionError) -> JSONResponse:
    """The answer when a request fails as a whole."""
    return JSONResponse(Failure.of(error).model_dump(mode="json"), KINDS[error.code].status)


class Door:
    """ASGI middleware: what BentoML would answer in forms of its own gets the one error body, and nothing escapes.

    An exception that escapes here would leave the client waiting: BentoML's timeout middleware swallows it.
    """

    def __init__(self, app: ASGIApp, endpoints: Sequence[str]) -> None:
        self.app = app
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = replaced = False

        async def shaped(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                replaced = message["status"] in (404, 405)
                if replaced:
                    await _not_routed(scope, message)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            if scope["method"] == "POST" and scope["path"] in self.endpoints and not _readable(scope):
                error = VisionError(Code.UNSUPPORTED_MEDIA_TYPE, "Send multipart/form-data or application/json.")
                await refusal(error)(scope, receive, send)
            else:
                await self.app(scope, receive, shaped)
        except Exception:
            log.exception("request failed")
            if started:
                raise
            await refusal(VisionError(Code.INTERNAL, "Something failed here; the log says what."))(scope, receive, send)


def _readable(scope: Scope) -> bool:
    media_type = Headers(scope=scope).get("content-type", "").split(";")[0].strip().lower()
    return media_type in ("multipart/form-data", "application/json")


def _not_routed(scope: Scope, message: Message) -> JSONResponse:
    if message["status"] == 404:
        return refusal(VisionError(Code.NOT_FOUND, f"There is no {scope['path']}; /docs.json lists what there is."))
    response = refusal(VisionError(Code.METHOD_NOT_ALLOWED, f"{scope['path']} does not take {scope['method']}."))
    response.headers["allow"] = Headers(raw=message["headers"]).get("allow", "POST")
    return response
