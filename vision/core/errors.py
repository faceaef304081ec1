"""Every way a picture or a request can fail: one table for endpoints and bulk rows."""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """What went wrong, as clients see it in `error.code`."""

    MALFORMED_REQUEST = "malformed_request"
    INVALID_OPTION = "invalid_option"
    MISSING_IMAGE = "missing_image"
    TOO_MANY_IMAGES = "too_many_images"
    TOO_FEW_IMAGES = "too_few_images"
    NOT_A_FILE = "not_a_file"
    INVALID_BASE64 = "invalid_base64"
    MISSING_KEY = "missing_key"
    UNKNOWN_KEY = "unknown_key"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TIMEOUT = "body_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    IMAGE_TOO_LARGE = "image_too_large"
    UNSUPPORTED_FORMAT = "unsupported_format"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    EMPTY_IMAGE = "empty_image"
    UNDECODABLE_IMAGE = "undecodable_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    BAD_DIMENSIONS = "bad_dimensions"
    QUOTA_EXCEEDED = "quota_exceeded"
    INFERENCE_FAILED = "inference_failed"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"


@dataclass(frozen=True)
class Kind:
    """The HTTP status of a code, and whether the same request may succeed when sent again."""

    status: int
    retryable: bool = False


KINDS: dict[Code, Kind] = {
    Code.MALFORMED_REQUEST: Kind(400),
    Code.INVALID_OPTION: Kind(400),
    Code.MISSING_IMAGE: Kind(400),
    Code.TOO_MANY_IMAGES: Kind(400),
    Code.TOO_FEW_IMAGES: Kind(400),
    Code.NOT_A_FILE: Kind(400),
    Code.INVALID_BASE64: Kind(400),
    Code.MISSING_KEY: Kind(401),
    Code.UNKNOWN_KEY: Kind(403),
    Code.NOT_FOUND: Kind(404),
    Code.METHOD_NOT_ALLOWED: Kind(405),
    Code.BODY_TIMEOUT: Kind(408, retryable=True),
    Code.REQUEST_TOO_LARGE: Kind(413),
    Code.IMAGE_TOO_LARGE: Kind(413),
    Code.UNSUPPORTED_FORMAT: Kind(415),
    Code.UNSUPPORTED_MEDIA_TYPE: Kind(415),
    Code.EMPTY_IMAGE: Kind(422),
    Code.UNDECODABLE_IMAGE: Kind(422),
    Code.TOO_MANY_PIXELS: Kind(422),
    Code.BAD_DIMENSIONS: Kind(422),
    Code.QUOTA_EXCEEDED: Kind(429, retryable=True),
    Code.INFERENCE_FAILED: Kind(500),
    Code.INTERNAL: Kind(500),
    Code.UNAVAILABLE: Kind(503, retryable=True),
    Code.OVERLOADED: Kind(503, retryable=True),
    Code.DEADLINE_EXCEEDED: Kind(504, retryable=True),
}

RETRY_AFTER: dict[int, int] = {429: 10, 503: 1}
"""Seconds after which a refused request may be sent again, by HTTP status."""


class VisionError(Exception):
    """A failure with a code and a plain message that says what to do next.

    Raised inside a room; at the room's edge it becomes an `Error` in the answer (schemas.py).
    """

    def __init__(self, code: Code, message: str) -> None:
        message = message.encode(errors="backslashreplace").decode()  # what a client sent may hold lone surrogates
        super().__init__(message)
        self.code = code
        self.message = message
