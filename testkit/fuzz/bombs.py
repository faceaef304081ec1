"""Pictures that are small on the wire and large, or slow, once they are read."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image

from testkit.photographs import encoded

SIDE = 8600
"""74 megapixels, just under what is taken."""


@dataclass(frozen=True)
class Bomb:
    make: Callable[[], bytes]
    outcome: str
    """The error code that refuses it, or ok."""


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size which its few bytes do not hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def png_with(chunks: bytes) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)))
    pixels = data.index(b"IDAT") - 4
    return data[:pixels] + chunks + data[pixels:]


def deflated(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 1_000_000), 9)


def jpeg_with(segments: bytes) -> bytes:
    data = encoded(Image.new("RGB", (64, 64)), "JPEG")
    return data[:2] + segments + data[2:]


def jpeg_scans(repeated: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.new("L", (SIDE, SIDE), 127), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * repeated + data[-2:]


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    """A BMP with a grey palette, compressed as RLE8."""
    start = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 256)
    return head + info + b"".join(bytes([grey, grey, grey, 0]) for grey in range(256)) + runs


def animation(format: str, frames: int) -> bytes:
    # Neighbouring frames must differ, else Pillow writes one.
    pictures = [Image.new("L", (16, 16), frame * 97 % 251) for frame in range(frames)]
    return encoded(pictures[0], format, save_all=True, append_images=pictures[1:])


def claims(data: bytes, after: bytes, width: int, height: int, form: str) -> bytes:
    """The data with another size written behind the first `after`."""
    start = data.index(after) + len(after)
    size = struct.pack(form, width, height)
    return data[:start] + size + data[start + len(size) :]


def webp_canvas() -> bytes:
    """An animated WebP whose canvas is as large as the format can say."""
    data = bytearray(animation("WEBP", 2))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (16_382).to_bytes(3, "little") * 2
    return bytes(data)


def plain(mode: str, format: str = "PNG", **options: object) -> Callable[[], bytes]:
    """A valid picture of 74 megapixels, all in one colour."""
    return lambda: encoded(Image.new(mode, (SIDE, SIDE)), format, **options)


def valid(mode: str, format: str = "PNG", **options: object) -> Callable[[], bytes]:
    """The same with noise in a corner, so that it has bytes enough for its pixels."""

    def make() -> bytes:
        picture = Image.new(mode, (SIDE, SIDE))
        noise = Image.frombytes("L", (1000, 1000), Random(0).randbytes(1_000_000))
        picture.paste(noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode))
        return encoded(picture, format, **options)

    return make


EXIF = b"MM\0*\0\0\0\x08"
ORIENTATION = b"\x01\x12\0\3\0\0\0\1\0\1\0\0"

BOMBS: dict[str, Bomb] = {
    "a PNG of 50,000 x 50,000": Bomb(lambda: png(50_000, 50_000), "too_many_pixels"),
    "a PNG of 2**31 - 1 squared": Bomb(lambda: png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "a BMP of 50,000 x 50,000": Bomb(
        lambda: claims(encoded(Image.new("RGB", (8, 8)), "BMP"), b"(\0\0\0", 50_000, 50_000, "<ii"), "too_many_pixels"
    ),
    "a GIF screen of 65,535 x 65,535": Bomb(
        lambda: claims(encoded(Image.new("L", (8, 8)), "GIF"), b"GIF87a", 65_535, 65_535, "<HH"), "too_many_pixels"
    ),
    "an AVIF of 50,000 x 50,000": Bomb(
        lambda: claims(encoded(Image.new("RGB", (64, 64)), "AVIF"), b"ispe\0\0\0\0", 50_000, 50_000, ">II"),
        "undecodable_image",
    ),
    "a WebP canvas of 16,383 x 16,383": Bomb(webp_canvas, "too_many_pixels"),
    "zTXt of 100 MB": Bomb(lambda: png_with(chunk(b"zTXt", b"k\0\0" + deflated(100))), "undecodable_image"),
    "iTXt of 100 MB": Bomb(lambda: png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + deflated(100))), "undecodable_image"),
    "zTXt of 1 MB, 1,000 times": Bomb(
        lambda: png_with(chunk(b"zTXt", b"k\0\0" + deflated(1)) * 1000), "undecodable_image"
    ),
    "an ICC profile of 100 MB": Bomb(lambda: png_with(chunk(b"iCCP", b"k\0\0" + deflated(100))), "undecodable_image"),
    "an ICC profile of 15 MB in a JPEG": Bomb(
        lambda: jpeg_with(
            b"".join(b"\xff\xe2\xff\xffICC_PROFILE\0" + bytes([part, 230]) + bytes(65_519) for part in range(1, 231))
        ),
        "ok",
    ),
    "EXIF of 15 MB": Bomb(lambda: png_with(chunk(b"eXIf", EXIF + bytes(15_000_000))), "ok"),
    "EXIF of 65,535 entries": Bomb(
        lambda: png_with(chunk(b"eXIf", EXIF + b"\xff\xff" + ORIENTATION * 65_535 + bytes(4))), "ok"
    ),
    "EXIF in 200,000 segments": Bomb(
        lambda: jpeg_with(b"\xff\xe1\0\x12Exif\0\0aaaaaaaaaa" * 200_000), "undecodable_image"
    ),
    "4,900,000 comments in a JPEG": Bomb(lambda: jpeg_with(b"\xff\xfe\0\2" * 4_900_000), "undecodable_image"),
    "19 MB of fill bytes in a JPEG": Bomb(lambda: jpeg_with(b"\xff" * 19_000_000), "undecodable_image"),
    "19 MB of fill bytes alone": Bomb(lambda: b"\xff\xd8" + b"\xff" * 19_000_000, "undecodable_image"),
    "100 scans too many": Bomb(lambda: jpeg_scans(100), "undecodable_image"),
    "1,000 scans too many": Bomb(lambda: jpeg_scans(1000), "undecodable_image"),
    "a film behind a JPEG": Bomb(lambda: jpeg_with(b"") + Random(0).randbytes(15_000_000), "ok"),
    "run lengths of a pixel a line": Bomb(
        lambda: run_length_bmp(SIDE, SIDE, b"\1\5\0\0" * SIDE + b"\0\1"), "too_many_pixels"
    ),
    "run lengths that end at once": Bomb(lambda: run_length_bmp(1000, 1000, b"\0\1"), "undecodable_image"),
    "run lengths that lie": Bomb(lambda: run_length_bmp(1000, 1000, b"\0\xff"), "undecodable_image"),
    "run lengths past the end": Bomb(lambda: run_length_bmp(10, 10, b"\xff\1" * 100_000), "undecodable_image"),
    "10,000 frames of GIF": Bomb(lambda: animation("GIF", 10_000), "ok"),
    "1,000 frames of PNG": Bomb(lambda: animation("PNG", 1000), "ok"),
    "1,000 frames of WebP": Bomb(lambda: animation("WEBP", 1000), "ok"),
    "a 1-bit PNG of 74 megapixels": Bomb(plain("1"), "too_many_pixels"),
    "a PNG of 74 megapixels in one colour": Bomb(plain("RGB"), "too_many_pixels"),
    "a WebP of 74 megapixels in one colour": Bomb(plain("RGB", "WEBP", lossless=True), "too_many_pixels"),
    "an AVIF of 64 x 64 that claims 74 megapixels": Bomb(
        lambda: claims(encoded(Image.new("RGB", (64, 64)), "AVIF"), b"ispe\0\0\0\0", SIDE, SIDE, ">II"),
        "too_many_pixels",
    ),
}

LARGE: dict[str, Bomb] = {
    "a PNG of 74 megapixels, grey and alpha": Bomb(valid("LA"), "ok"),
    "a PNG of 74 megapixels, RGBA": Bomb(valid("RGBA"), "ok"),
    "a PNG of 74 megapixels, 16 bit": Bomb(valid("I;16"), "ok"),
    "a JPEG of 74 megapixels": Bomb(valid("RGB", "JPEG"), "ok"),
    "a JPEG of 74 megapixels, progressive": Bomb(valid("RGB", "JPEG", progressive=True), "ok"),
    "a JPEG of 74 megapixels, CMYK": Bomb(valid("CMYK", "JPEG"), "ok"),
    "a WebP of 74 megapixels": Bomb(valid("RGB", "WEBP"), "ok"),
    "a GIF of 74 megapixels": Bomb(valid("L", "GIF"), "ok"),
}
"""Valid, only large: they may cost what they must; `make fuzz` says how much."""
