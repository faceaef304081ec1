"""Untrusted bytes -> oriented RGB pixels, within limits."""

import io
import logging

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vision.errors import Code, VisionError
from vision.schemas import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")

MAX_SIDE = 1280
"""Long side in pixels of what a model is shown: the cost of a call to a runner grows with its pixels."""

# The first bytes of the formats above: tells a broken picture from a file of another kind.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF87a", b"GIF89a", b"BM")

log = logging.getLogger(__name__)


def decode(data: bytes, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """Decode a picture in full: the format is sniffed from the bytes, the first frame of an animation is taken.

    Returns an RGB image with its EXIF orientation applied; transparency lies on white, 16-bit channels
    keep their upper eight bits.
    Raises VisionError: empty_image, image_too_large (over max_bytes), unsupported_format, too_many_pixels
    (read from the header, before pixels are decoded) or undecodable_image.
    """
    if not data:
        raise VisionError(Code.EMPTY_IMAGE, "The picture has no bytes.")
    if len(data) > max_bytes:
        raise VisionError(
            Code.IMAGE_TOO_LARGE,
            f"The picture has {len(data):,} bytes; at most {max_bytes:,} are taken. Send a smaller one.",
        )
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width} x {height}", max_pixels)
    try:
        image.load()
        return _to_rgb(_orient(image))
    except Exception as error:
        # Decoders raise nearly every type for broken input; each is the picture's failure, not ours.
        log.info("undecodable %s: %s", image.format, type(error).__name__)
        raise VisionError(
            Code.UNDECODABLE_IMAGE, f"The {image.format} picture is broken or cut short; send it again in full."
        ) from error


def to_pixels(image: Image.Image) -> Pixels:
    """An RGB image as pixels whose long side is at most MAX_SIDE; never enlarged, no side under 1."""
    scale = MAX_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise VisionError(Code.TOO_MANY_PIXELS, "The picture has too many pixels; send a smaller one.") from error
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES) or data[4:12] in (b"ftypavif", b"ftypavis"):
            raise VisionError(
                Code.UNDECODABLE_IMAGE, "The picture's header is broken; send it again in full."
            ) from error
        raise VisionError(
            Code.UNSUPPORTED_FORMAT, f"These bytes are no picture in a known format ({', '.join(FORMATS)})."
        ) from error
    except Exception as error:
        log.info("unreadable header: %s", type(error).__name__)
        raise VisionError(Code.UNDECODABLE_IMAGE, "The picture's header is broken; send it again in full.") from error


def _orient(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        # A picture with a broken EXIF block is shown unrotated by browsers, too.
        log.info("unreadable EXIF: %s", type(error).__name__)
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _too_many_pixels(size: str, max_pixels: int) -> VisionError:
    return VisionError(Code.TOO_MANY_PIXELS, f"The picture has {size} pixels; at most {max_pixels:,} are taken.")
