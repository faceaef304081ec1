"""Untrusted bytes -> oriented pixels, within limits."""

import io
import logging
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from pi_heif import register_heif_opener
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from vision.core import colours, jpegs
from vision.core.errors import Code, VisionError
from vision.core.schemas import Pixels

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits here are ours
register_heif_opener()  # what phones send, into Pillow

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF"]
FORMATS: tuple[Format, ...] = get_args(Format)

PIXELS = 1
"""Raised whenever pixels change on their way to a model, here or in pixels.py: what bulk keeps is stale then."""

ENOUGH = 1280
"""Longer side in pixels from which every model here can be shown what it needs."""

MAX_RUN_LENGTH_PIXELS = 2_000_000

FEW_PIXELS = 10_000_000
"""Up to which a picture may be as flat as it likes."""

SECONDS_A_PIXEL = 8e-9
"""What decoding takes of a JPEG that is baseline and reduced meanwhile."""

OTHERS, RUN_LENGTHS, SCAN = 4, 60, 0.3
"""How many times that other formats and run-length BMPs take; what each further scan of a JPEG adds."""

_PNG = b"\x89PNG\r\n\x1a\n"

SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM....\0\0\0\0|....ftyp(?:avi|hei|hev|mif|msf)", re.DOTALL
)
"""How the formats above begin: tells a picture, broken or not, from a file of another kind."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a picture may be; checked before its pixels are decoded."""

    max_bytes: int = 20_000_000
    max_pixels: int = 75_000_000
    max_side: int = 30_000
    max_aspect: float = 100
    formats: Sequence[Format] = FORMATS
    max_pixels_per_byte: float = 200
    """Of pictures with more than FEW_PIXELS: 38 bytes can say 74 megapixels of one colour, photographs have 2 to 50."""


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What a picture says before its pixels: how many there are, and what decoding them will take."""

    format: str
    pixels: int
    seconds: float


def decode(data: bytes, limits: Limits = LIMITS) -> Image.Image:
    """Decode a picture in full: the format is sniffed from the bytes, the first frame of an animation is taken.

    Returns an RGB image in sRGB with its EXIF orientation applied; transparency lies on white, 16-bit channels
    keep their upper eight bits.
    Raises VisionError: empty_image, image_too_large (bytes), unsupported_format, too_many_pixels, bad_dimensions
    (these two read from the header) or undecodable_image.
    """
    image, _, load = _open(data, limits)
    picture = _load(image, load, None)[0]
    return Image.fromarray(colours.to_srgb(np.asarray(picture), picture)) if picture.info else picture


def decode_reduced(data: bytes, limits: Limits = LIMITS) -> tuple[Image.Image, tuple[int, int]]:
    """Decode a picture to where a model's preprocessing begins; return it and its (width, height) in full.

    As decode(), but sides are divided by the largest whole number that leaves ENOUGH of the longer one: in a JPEG
    as far as the inverse transform gives fewer pixels for less work (by 2, 4 or 8), the rest by averaging. Models
    resize from there once. That is nearer to what they answer about all pixels than resizing twice.

    A picture with a colour profile is in its own colours yet (RGB, L or CMYK): colours.to_srgb() takes the pixels that
    a model is given, which are fewer.
    """
    image, _, load = _open(data, limits)
    return _load(image, load, ENOUGH)


def decode_cheap(data: bytes, limits: Limits, seconds: float) -> tuple[Image.Image, tuple[int, int]] | Header:
    """As decode_reduced(), but return the Header of a picture whose decoding will take longer than `seconds`."""
    image, header, load = _open(data, limits)
    return header if header.seconds > seconds else _load(image, load, ENOUGH)


def _open(data: bytes, limits: Limits) -> tuple[ImageFile, Header, Callable[[], object]]:
    """Check all that can be checked before pixels are decoded; return what decodes them, too."""
    if not data:
        raise VisionError(Code.EMPTY_IMAGE, "The picture has no bytes.")
    if len(data) > limits.max_bytes:
        raise VisionError(
            Code.IMAGE_TOO_LARGE,
            f"The picture has {len(data):,} bytes; at most {limits.max_bytes:,} are taken. Send a smaller one.",
        )
    jpeg = jpegs.read(data) if data.startswith(b"\xff\xd8") else None
    image = _identify(data, limits.formats)
    _check_size(image.size, limits)
    pixels = image.width * image.height
    if pixels > max(FEW_PIXELS, len(data) * limits.max_pixels_per_byte):
        raise VisionError(
            Code.TOO_MANY_PIXELS,
            f"The picture has {pixels:,} pixels in {len(data):,} bytes; beyond {FEW_PIXELS:,} pixels, "
            f"at most {limits.max_pixels_per_byte:g} a byte are taken. Send a smaller one.",
        )
    if _has_run_lengths(image):
        times: float = RUN_LENGTHS
    else:
        times = 1 + SCAN * (len(jpeg.scans) - 1) if jpeg and image.format == "JPEG" else OTHERS
    load = partial(jpegs.load, image, data, jpeg) if jpeg else image.load
    return image, Header(str(image.format), pixels, pixels * times * SECONDS_A_PIXEL), load


def _load(image: Image.Image, load: Callable[[], object], least: int | None) -> tuple[Image.Image, tuple[int, int]]:
    width, height = image.size
    try:
        if least:
            scale = max(1, max(image.size) // least)
            image.draft(None, (width // scale, height // scale))  # does something to a JPEG only
        load()
        turned = _orient(image)
        profile = image.info.get("icc_profile")
        transform = colours.find(profile, image.mode)
        image = _flat(image, transform.input_mode if transform else "RGB")
        if least and (factor := max(image.size) // least) > 1:
            image = image.reduce(factor)
        colours.mark(image, profile, transform)
    except VisionError:
        raise
    except Exception as error:
        # Decoders raise nearly every type for broken input; each is the picture's failure, not ours.
        log.info("undecodable %s: %s", image.format, type(error).__name__)
        raise VisionError(
            Code.UNDECODABLE_IMAGE, f"The {image.format} picture is broken or cut short; send it again in full."
        ) from error
    return image, (height, width) if turned else (width, height)


def shrink(image: Image.Image) -> Pixels:
    """Pixels whose longer side is at most ENOUGH, for models whose own preprocessing is not known here."""
    scale = ENOUGH / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise VisionError(
            Code.TOO_MANY_PIXELS, f"The picture has {width} x {height} pixels; at most {limits.max_pixels:,} are taken."
        )
    if max(size) > min(limits.max_side, limits.max_aspect * min(size)):
        raise VisionError(
            Code.BAD_DIMENSIONS,
            f"The picture is {width} x {height}; no side may be longer than {limits.max_side:,} pixels "
            f"or than {limits.max_aspect:g} times the other.",
        )


def _has_run_lengths(image: Image.Image) -> bool:
    """Whether it is a BMP that Pillow decodes in Python; refuse a large one."""
    run_lengths = image.format == "BMP" and image.info.get("compression") in (1, 2)
    if run_lengths and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
        raise VisionError(
            Code.TOO_MANY_PIXELS, f"A run-length BMP may have {MAX_RUN_LENGTH_PIXELS:,} pixels; send a PNG or JPEG."
        )
    return run_lengths


def _identify(data: bytes, formats: Sequence[Format]) -> ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=tuple(formats))
    except Image.DecompressionBombError as error:
        raise VisionError(Code.TOO_MANY_PIXELS, "The picture has too many pixels; send a smaller one.") from error
    except UnidentifiedImageError as error:
        if (kept := _without_broken_chunks(data)) != data:
            return _identify(kept, formats)
        if SIGNATURE.match(data):
            raise VisionError(
                Code.UNDECODABLE_IMAGE, "The picture's header is broken; send it again in full."
            ) from error
        raise VisionError(
            Code.UNSUPPORTED_FORMAT, f"These bytes are no picture in a known format ({', '.join(formats)})."
        ) from error
    except Exception as error:
        log.info("unreadable header: %s", type(error).__name__)
        raise VisionError(Code.UNDECODABLE_IMAGE, "The picture's header is broken; send it again in full.") from error


def _without_broken_chunks(data: bytes) -> bytes:
    """Leave out of a PNG what stands before its pixels, is not needed for them, and has a wrong checksum.

    Every viewer does so; Pillow refuses the picture.
    """
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    while (name := data[at + 4 : at + 8]) and name != b"IDAT":
        end = at + 12 + int.from_bytes(data[at : at + 4])
        right = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if right or not name[:1].islower():  # a small letter: not needed
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))


def _orient(image: Image.Image) -> bool:
    """Apply the EXIF orientation; return whether width and height changed places."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        # A picture with a broken EXIF block is shown unrotated by browsers, too.
        log.info("unreadable EXIF: %s", type(error).__name__)
        return False
    return turned


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """Return it as RGB, L or CMYK, without transparency."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # what writes no alpha writes zeros; every viewer shows the picture
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
    return image.convert(mode)
