"""How requests are read: pictures as files of a form, as base64 in JSON, or one as the body; beside them options.

Options stand in the body or in the query string, and mean the same in both.
"""

import asyncio
import base64
import json
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, Field, ValidationError, create_model
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vision.api.endpoints import Drawable, Endpoint, Wanted
from vision.api.facts import FACTS
from vision.core.draw import MediaType
from vision.core.errors import Code, VisionError
from vision.core.images import SIGNATURE
from vision.settings import SETTINGS

LIST_OPTIONS = ("features", "labels")

IMAGES, ALIASES = "images", ("images[]", "image", "file")
"""What pictures are called, and what clients call them that know no `images`."""

FORM, JSON, UNTOLD = "multipart/form-data", "application/json", ("", "application/x-www-form-urlencoded")
"""Media types; the last are what clients send that were told of none (curl --data-binary)."""

_PICTURES: tuple[MediaType, ...] = get_args(MediaType)

MAX_COMMAS = 1_000
"""In a JSON body. base64 has none, so this bounds the values: millions of them would fill the memory."""

MAX_PARAMETERS = 1_000
"""In a query string, as parts in a form."""

_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DATA_URL = re.compile(r"\s*data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)

_STANDARD = bytes.maketrans(b"-_", b"+/")
"""base64's other alphabet (RFC 4648, 5) to the first."""


@dataclass(frozen=True)
class ReadRequest:
    """A request, read: its pictures (or why one cannot be had), and what it wants to know of each."""

    images: list[bytes | VisionError]
    wanted: list[Wanted]
    options: Drawable
    picture: MediaType | None
    """The answer itself is to be the one picture, drawn."""


def fields(endpoint: Endpoint) -> type[BaseModel]:
    """The fields of an endpoint's request, for documents and generated clients."""
    images = Field(min_length=endpoint.least, max_length=SETTINGS.max_images, description="The pictures.")
    return create_model("Fields", __base__=endpoint.options, images=(list[Path], images))


async def read(request: Request, endpoint: Endpoint) -> ReadRequest:
    """Read a request. Raises VisionError where all of it fails."""
    query = _read_query(request.scope["query_string"])
    images, body = await _read(request)
    if len(images) < endpoint.least:
        raise VisionError(
            Code.TOO_FEW_IMAGES,
            f"{len(images)} picture; {endpoint.name} takes at least {endpoint.least}, of one profile.",
        )
    options = _validate(endpoint.options, query, body)
    picture = preferred(",".join(request.headers.getlist("accept")))
    if picture and len(images) > 1:
        alone = "send one, or " if endpoint.least == 1 else ""
        raise VisionError(
            Code.TOO_MANY_IMAGES,
            f"Accept asks for {picture}, which holds one picture, and {len(images)} were sent; "
            f"{alone}accept application/json and set render=true.",
        )
    return ReadRequest(images, endpoint.wanted(options), options, picture)


def preferred(accept: str) -> MediaType | None:
    """The picture that an Accept header prefers to JSON (RFC 9110, 12.5.1); None where it is to be JSON."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_range, *parameters = (word.strip() for word in part.split(";"))
        weights[media_range] = next((_weight(word) for word in parameters if word.startswith("q=")), 1)

    def weight(media_type: str) -> float:
        ranges = (media_type, f"{media_type.split('/')[0]}/*", "*/*")
        return next((weights[one] for one in ranges if one in weights), 0)

    best = max(_PICTURES, key=weight)
    return best if weight(best) > weight(JSON) else None


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0


def check_media_type(headers: Headers) -> None:
    """Raises VisionError: unsupported_media_type, when no body of this type is read."""
    media_type = _media_type(headers.get("content-type"))
    if media_type not in (FORM, JSON, *UNTOLD) and not _is_picture(media_type):
        raise _unsupported()


async def _read(request: Request) -> tuple[list[bytes | VisionError], dict[str, Any]]:
    """Return the pictures of a body and its option fields, not validated yet."""
    media_type = _media_type(request.headers.get("content-type"))
    fields: dict[str, Any] = {}
    images: list[bytes | VisionError]
    if media_type == FORM:
        images, fields = await _read_form(request)
    elif media_type == JSON:
        images, fields = await asyncio.to_thread(_read_json, await request.body())
    else:
        images = [await _read_picture(request, media_type)]
    if not images:
        raise VisionError(Code.MISSING_IMAGE, "Send at least one picture in `images`.")
    if len(images) > SETTINGS.max_images:
        raise VisionError(
            Code.TOO_MANY_IMAGES, f"{len(images)} pictures in one request; at most {SETTINGS.max_images} are taken."
        )
    FACTS.get().images = len(images)
    return images, fields


def _media_type(content_type: str | None) -> str:
    return (content_type or "").split(";")[0].strip().lower()


def _is_picture(media_type: str) -> bool:
    return media_type.startswith("image/") or media_type == "application/octet-stream"


def _unsupported() -> VisionError:
    return VisionError(
        Code.UNSUPPORTED_MEDIA_TYPE,
        "Send multipart/form-data, application/json, or one picture as the body (Content-Type: image/jpeg).",
    )


async def _read_picture(request: Request, media_type: str) -> bytes:
    body = await request.body()
    if _is_picture(media_type) or SIGNATURE.match(body):
        return body
    raise _unsupported()


def _read_query(query: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as error:
        raise VisionError(
            Code.MALFORMED_REQUEST, f"The query string is no UTF-8, or has more than {MAX_PARAMETERS:,} options."
        ) from error
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in (IMAGES, *ALIASES):
            raise VisionError(Code.INVALID_OPTION, f"{name}: pictures go into the body, not into the query string.")
        values.setdefault(name, []).append(value)
    return {name: _option(name, given) for name, given in values.items()}


def _names(given: Container[str]) -> Sequence[str]:
    """What pictures are called in a body with these names."""
    return (IMAGES,) if IMAGES in given else ALIASES


class InMemoryParser(MultiPartParser):
    spool_max_size = 2**31  # people's photos do not touch the disk
    ended = False

    def on_headers_finished(self) -> None:
        """Make a file of each part that may be a picture; else it would be kept as text, and have 1 MB at most."""
        part = self._current_part
        _, parameters = parse_options_header(part.content_disposition)
        named = parameters.get(b"name", b"").decode("latin-1") in (IMAGES, *ALIASES)
        typed = dict(part.item_headers).get(b"content-type", b"").lower().startswith(b"image/")
        if part.content_disposition and b"filename" not in parameters and (named or typed):
            part.content_disposition += b'; filename=""'
        super().on_headers_finished()

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
    names = _names(form)
    images = [await _file(name, part) for name, part in form.multi_items() if name in names]
    return images, {name: _option(name, form.getlist(name)) for name in form if name not in names}


async def _file(name: str, part: UploadFile | str) -> bytes | VisionError:
    data = await part.read() if isinstance(part, UploadFile) else part.encode()
    told = isinstance(part, UploadFile) and (part.filename or _is_picture(_media_type(part.content_type)))
    if told or SIGNATURE.match(data):
        return data
    decoded = await asyncio.to_thread(_base64, data.decode("latin-1"))
    if isinstance(decoded, bytes) and SIGNATURE.match(decoded):
        return VisionError(Code.NOT_A_FILE, f'`{name}` holds base64, which goes into JSON: {{"images": ["…"]}}.')
    return VisionError(Code.NOT_A_FILE, f"`{name}` holds text; send a file (curl: -F images=@photo.jpg).")


def _option(name: str, parts: Sequence[UploadFile | str]) -> Any:
    """An option as text: plain, JSON text as BentoML's client sends it, or repeated for a list; None if left empty."""
    values = [part for part in parts if isinstance(part, str)]
    if len(values) < len(parts):
        raise VisionError(Code.INVALID_OPTION, f"{name[:50]} holds a file; call each picture `images`.")
    values = [value for value in values if value]
    if not values or values == ["null"]:
        return None
    if len(values) == 1 and values[0].startswith("["):
        try:
            return json.loads(values[0])
        except (ValueError, RecursionError) as error:
            raise VisionError(Code.INVALID_OPTION, f"{name[:50]} begins like JSON but is none.") from error
    if name in LIST_OPTIONS:
        return values
    if len(values) > 1:
        raise VisionError(Code.INVALID_OPTION, f"{name[:50]} is given {len(values)} times.")
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
    images: list[Any] = []
    for name in _names(fields):
        given = fields.pop(name, [])
        if name != IMAGES and isinstance(given, str):
            given = [given]
        if not isinstance(given, list):
            raise VisionError(Code.MALFORMED_REQUEST, f"`{name}` is no list of base64 strings.")
        images += given
    return [_base64(image) for image in images], fields


def _base64(text: Any) -> bytes | VisionError:
    """Read base64 as encoders write it: in lines, in either alphabet, without padding, in a data: URL."""
    if not isinstance(text, str):
        return _no_base64(f"this is {_kind(text)}")
    head = text[:1_000]
    if _ADDRESS.match(head):
        return _no_base64("this is an address, and nothing is fetched here")
    if url := _DATA_URL.match(head):
        media_type, parameters = url.groups()
        if media_type and not _is_picture(_media_type(media_type)):
            return _no_base64(f"this is a data: URL of {media_type[:50]}")
        if not parameters.lower().endswith(";base64"):
            return _no_base64("this data: URL holds no base64")
        text = text[url.end() :]
    elif head.startswith(("b'", 'b"')):
        return _no_base64("this is how Python prints bytes; send .decode() of it")
    try:
        data = text.encode("ascii").translate(_STANDARD, b" \t\r\n")
        whole = len(data) % 4 == 0
        data = base64.b64decode(data if whole else data + b"=" * (-len(data) % 4), validate=True)
    except ValueError:
        return _no_base64("this is something else, or was cut")
    if whole or SIGNATURE.match(data):
        return data
    return _no_base64("this is something else, or was cut")  # a path may read as base64 whose padding was left out


def _no_base64(why: str) -> VisionError:
    return VisionError(Code.INVALID_BASE64, f"A picture in JSON is the base64 of its bytes; {why}.")


def _kind(value: Any) -> str:
    """What JSON calls a value that is no text."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "a number"


def _validate(options: type[Drawable], *sources: Mapping[str, Any]) -> Drawable:
    fields: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            if value is None and name in options.model_fields:
                continue  # stands for the default
            if name in fields:
                raise VisionError(Code.INVALID_OPTION, f"{name[:50]} is given in the query string and in the body.")
            fields[name] = value
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
