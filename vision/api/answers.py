"""How answers are written: one shape for results, one for errors."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from vision.api.facts import FACTS
from vision.core.draw import MediaType
from vision.core.errors import KINDS, Code, VisionError
from vision.core.look import Seen
from vision.core.schemas import Failure, Size

ERROR_CODE = "x-error-code"
"""Header of every error answer of ours; the door replaces those without it."""


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def answer(seen: Sequence[Seen | VisionError], flat: bool, beside: Mapping[str, Any]) -> Response:
    """200 when a picture succeeded; else the status of the first error, which then stands before the results.

    flat: the one question's result stands in the picture's result itself, and not under the question's word.
    beside: what stands beside the results where a picture succeeded.
    """
    results = [_failure(one) if isinstance(one, VisionError) else _result(one, flat) for one in seen]
    failures = [one for one in results if isinstance(one, Failure)]
    if len(failures) < len(results):
        return Json({**beside, "results": results})
    return _failed(failures[0].error.code, {"error": failures[0].error, "results": results})


def picture(seen: Seen | VisionError, media_type: MediaType) -> Response:
    """The drawn picture; an error where the picture or one of its questions failed."""
    if isinstance(seen, VisionError):
        return refusal(seen)
    for result in seen.results.values():
        if isinstance(result, VisionError):
            return refusal(result)
    return Response(seen.rendered, media_type=media_type)


def refusal(error: VisionError) -> Response:
    """The answer when a request fails as a whole."""
    return _failed(error.code, {"error": _failure(error).error})


def readiness(ready: bool, told: dict[str, Any]) -> Response:
    """200 or 503, with the state of each runner and model."""
    told = {"ready": ready, **told}
    if ready:
        return Json(told)
    failure = _failure(VisionError(Code.UNAVAILABLE, "Not ready; try again in a moment."))
    return _failed(Code.UNAVAILABLE, {"error": failure.error, **told})


def _result(seen: Seen, flat: bool) -> dict[str, Any]:
    width, height = seen.size
    results = {word: _failure(one) if isinstance(one, VisionError) else one for word, one in seen.results.items()}
    beside: dict[str, Any] = {"ms": seen.ms}
    if seen.rendered is not None:
        beside["rendered"] = b64encode(seen.rendered).decode()
    size = Size(width=width, height=height)
    if flat:
        [result] = results.values()
        return {**dict(result), "size": size, **beside}
    if seen.quality:
        beside["quality"] = seen.quality
    return {"size": size, **results, **beside}


def _failure(error: VisionError) -> Failure:
    failure = Failure.of(error)
    failure.error.request_id = FACTS.get().request_id
    return failure


def _failed(code: Code, body: dict[str, Any]) -> Response:
    return Json(body, KINDS[code].status, {ERROR_CODE: code})
