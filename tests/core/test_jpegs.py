"""What every viewer shows is answered, and nothing is made up: pictures cut short or slightly broken."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testkit.fuzz.bombs import chunk
from testkit.photographs import PHOTOS, encoded
from vision.core.errors import Code, VisionError
from vision.core.images import decode, decode_reduced

END = b"\xff\xd9"
KINDS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "plain": ("RGB", (480, 640), {}),
    "odd sides": ("RGB", (333, 501), {"subsampling": 0}),
    "reduced": ("RGB", (1300, 2600), {}),
    "grey": ("L", (480, 640), {"quality": 95}),
    "CMYK": ("CMYK", (480, 640), {}),
    "its own codes": ("RGB", (480, 640), {"optimize": True}),
    "restarts": ("RGB", (480, 640), {"restart_marker_rows": 1}),
    "many restarts": ("L", (480, 640), {"restart_marker_blocks": 3}),
    "progressive": ("RGB", (480, 640), {"progressive": True}),
    "progressive and grey": ("L", (333, 501), {"progressive": True}),
    "progressive and reduced": ("RGB", (1300, 2600), {"progressive": True}),
    "progressive with restarts": ("RGB", (480, 640), {"progressive": True, "restart_marker_rows": 1}),
    "progressive with many restarts": ("RGB", (480, 640), {"progressive": True, "restart_marker_blocks": 7}),
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(PHOTOS["bus"]) as image:
        return image.convert("RGB")


def refusal(data: bytes) -> VisionError:
    with pytest.raises(VisionError) as caught:
        decode_reduced(data)
    return caught.value


@pytest.fixture(params=KINDS)
def jpeg(request: pytest.FixtureRequest, photo: Image.Image) -> bytes:
    mode, size, options = KINDS[request.param]
    return encoded(photo.resize(size).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff", END, END + b"more", b"\0\0" + END, b"\xff\xfe\0\2" + END])
def test_a_jpeg_with_all_rows_is_answered_whatever_its_end(jpeg: bytes, end: bytes) -> None:
    with Image.open(io.BytesIO(jpeg)) as whole:
        expected = whole.convert("RGB")
    assert decode(jpeg[:-2] + end).tobytes() == expected.tobytes()


@pytest.mark.served
def test_a_jpeg_cut_anywhere_is_refused_with_and_without_an_end_marker(jpeg: bytes) -> None:
    for hundredth in range(100):
        cut = jpeg[: (len(jpeg) - 2) * hundredth // 100]
        for data in (cut, cut + END, cut + b"\xff" + END, cut + jpeg):
            if hundredth and data != cut + jpeg:
                assert refusal(data).code == Code.UNDECODABLE_IMAGE, hundredth


def test_a_refusal_tells_how_much_came(photo: Image.Image) -> None:
    data = encoded(photo, "JPEG", restart_marker_rows=1)
    rows = data.count(b"\xff\xd0") + sum(data.count(bytes([255, 208 + number])) for number in range(1, 8)) + 1
    at = -1
    for _ in range(rows // 8 // 2):
        at = data.index(b"\xff\xd7", at + 1)
    share = 100 * (rows // 8 // 2 * 8) // rows
    message = refusal(data[:at]).message
    told = int(message.partition("about ")[2].partition(" %")[0])
    assert told == pytest.approx(share, abs=3), message
    progressive = encoded(photo, "JPEG", progressive=True)
    assert "first 1 scans" in refusal(progressive[: progressive.index(b"\xff\xda") + 2000]).message


def test_a_jpeg_whose_colours_did_not_come_is_refused(photo: Image.Image) -> None:
    """A scan for each component, or progressive, without its last scans."""
    progressive = encoded(photo, "JPEG", progressive=True)
    scans = [at for at in range(len(progressive)) if progressive[at : at + 2] == b"\xff\xda"]
    assert len(scans) == 10
    for at in scans[1:]:
        cut = progressive[: progressive.rindex(b"\xff\xc4", 0, at)]
        assert "scans came" in refusal(cut).message


def lossless_jpeg(grey: Image.Image) -> bytes:
    """ITU-T T.81, annex H: each pixel's difference from the one on its left, as length and bits."""
    pixels = np.asarray(grey).astype(int)
    left = np.hstack([np.vstack([[[128]], pixels[:-1, :1]]), pixels[:, :-1]])
    bits = ""
    for difference in (pixels - left).ravel().tolist():
        length = abs(difference).bit_length()
        bits += f"{length:04b}"
        bits += f"{difference if difference > 0 else difference + (1 << length) - 1:0{length}b}" if length else ""
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHBBBB", 8, grey.height, grey.width, 1, 1, 0x11, 0)
    codes = bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])
    segments = [(0xC3, frame), (0xC4, codes), (0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    head = b"".join(bytes([255, kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + head + data + END


def with_frame(data: bytes, marker: int, bits: int = 8) -> bytes:
    at = data.index(b"\xff\xc0")
    return data[:at] + bytes([255, marker]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda photo: lossless_jpeg(photo.convert("L").resize((60, 80))), "lossless JPEG"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xC3, 16), "lossless JPEG"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xCB), "lossless JPEG"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xC1, 12), "12 bits"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xC2, 12), "12 bits"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xC5), "hierarchical JPEG"),
        (lambda photo: with_frame(encoded(photo, "JPEG"), 0xF7), "JPEG-LS"),
    ],
)
def test_another_kind_of_jpeg_is_told_as_that(
    photo: Image.Image, make: Callable[[Image.Image], bytes], kind: str
) -> None:
    error = refusal(make(photo))
    assert error.code == Code.UNSUPPORTED_FORMAT
    assert kind in error.message


def with_wrong_checksum(data: bytes, name: bytes) -> bytes:
    at = data.index(name)
    end = at + 4 + int.from_bytes(data[at - 4 : at])
    return data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :]


def with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk(name, body) + data[at:]


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"pHYs", b"tIME", b"iCCP", b"prVt"])
def test_a_wrong_checksum_where_no_pixels_are_harms_nothing(photo: Image.Image, name: bytes) -> None:
    plain = encoded(photo.resize((48, 64)))
    broken = with_wrong_checksum(with_chunk(with_chunk(plain, name, b"k\0\0broken"), b"prIv", b"right"), name)
    assert decode(broken).tobytes() == decode(plain).tobytes()


def test_a_wrong_checksum_at_the_end_harms_nothing_and_in_the_head_does(photo: Image.Image) -> None:
    plain = encoded(photo.resize((48, 64)))
    assert decode(with_wrong_checksum(plain, b"IEND")).tobytes() == decode(plain).tobytes()
    late = with_wrong_checksum(plain[:-12] + chunk(b"tEXt", b"k\0late") + plain[-12:], b"tEXt")
    assert decode(late).tobytes() == decode(plain).tobytes()
    palette = encoded(photo.resize((48, 64)).quantize(16))
    for data, name in ((plain, b"IHDR"), (palette, b"PLTE")):
        assert refusal(with_wrong_checksum(data, name)).code == Code.UNDECODABLE_IMAGE


def bmp_32(photo: Image.Image, alpha: int, header: int) -> bytes:
    """With the masks of four channels, in the header of that many bytes."""
    data = np.dstack([np.asarray(photo)[::-1, :, ::-1], np.full(photo.size[::-1], alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", header, photo.width, photo.height, 1, 32, 3, len(data), 0, 0, 0, 0) + masks
    start = 14 + header
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info.ljust(header, b"\0") + data


@pytest.mark.parametrize("header", [56, 108, 124])
def test_a_bmp_whose_alpha_is_all_zero_is_opaque(photo: Image.Image, header: int) -> None:
    small = photo.resize((48, 64))
    for alpha in (0, 255):
        assert decode(bmp_32(small, alpha, header)).tobytes() == small.tobytes()
    some = bytearray(bmp_32(small, 0, header))
    some[-1] = 255  # transparent but for a corner
    picture = decode(bytes(some))
    assert picture.getpixel((10, 10)) == (255, 255, 255)
    assert picture.getpixel((47, 0)) == small.getpixel((47, 0))
    assert decode(encoded(Image.new("RGBA", (4, 4)))).getpixel((0, 0)) == (255, 255, 255)
