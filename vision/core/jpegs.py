"""JPEGs: what they hold, read before their pixels are decoded, and decoding that knows whether all rows came."""

import re
from dataclasses import dataclass, field

from PIL import Image
from PIL.ImageFile import ImageFile

from vision.core.errors import Code, VisionError

MAX_SCANS, MAX_SEGMENTS, MAX_FILL = 100, 2_000, 65_536
"""Progressive ones have some ten scans; a segment holds up to 64 kB; fill is bytes between segments."""

# Markers, but for those without a length; in pixel data a stuffed zero follows each 0xff.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SCAN, _END, _JPEG_LS = 0xDA, 0xD9, 0xF7
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_LOSSLESS, _HIERARCHICAL = (0xC3, 0xC7, 0xCB, 0xCF), (0xC5, 0xC6, 0xCD, 0xCE)

_ONES, _PROBES, _IDLE = b"\xff\x00", 16, 8
"""Eight bits of pixel data that are no code; how often they are given; how many a decoder takes that has it all."""


@dataclass
class Jpeg:
    """What the markers say. frame: the second byte of the frame's. components: of the frame. scans: each one's header.
    end: where the last scan's pixel data ends. ended: whether an end marker came."""

    frame: int = 0
    components: int = 0
    scans: list[bytes] = field(default_factory=list)
    end: int = 0
    ended: bool = False

    @property
    def has_several_scans(self) -> bool:
        return self.frame == _PROGRESSIVE or self.scans[0][0] < self.components


def read(data: bytes) -> Jpeg:
    """Read the markers. Raises VisionError: unsupported_format (another kind of JPEG, which Pillow cannot decode) or
    undecodable_image, also for one whose few bytes take minutes: a scan is a pass over all pixels, a segment is read
    in Python."""
    jpeg, segments, at = Jpeg(), 0, 2
    while marker := _MARKER.search(data, at):
        kind, start = data[marker.end() - 1], marker.end()
        if jpeg.scans and not jpeg.end:
            jpeg.end = marker.start()
        if kind == _END:
            jpeg.ended = True
            break
        length = int.from_bytes(data[start : start + 2])
        segment = data[start + 2 : start + length]
        if kind == _SCAN:
            jpeg.scans.append(segment)
            jpeg.end = 0
        elif (kind in _FRAMES or kind == _JPEG_LS) and not jpeg.frame and len(segment) > 5:
            _check_kind(kind, segment[0])
            jpeg.frame, jpeg.components = kind, segment[5]
        segments += 1
        fill = marker.start() - at
        if len(jpeg.scans) > MAX_SCANS or segments > MAX_SEGMENTS or (not jpeg.scans and fill > MAX_FILL):
            raise VisionError(Code.UNDECODABLE_IMAGE, "The JPEG has more scans or segments than any camera writes.")
        at = start + length
    if not jpeg.scans:
        raise VisionError(Code.UNDECODABLE_IMAGE, "The JPEG has no pixels; send it again in full.")
    jpeg.end = jpeg.end or len(data)
    return jpeg


def load(image: ImageFile, data: bytes, jpeg: Jpeg) -> None:
    """As image.load(), but take a picture without its end marker, and refuse one without all its rows.

    libjpeg fills what is missing with grey, and tells of it in a warning that Pillow drops. So the decoder is given no
    end until it has shown that it waits for nothing else. Up to three blocks of 8 x 8 pixels in the last corner may
    be missing unseen, and of progressive pictures with an end marker, scans that the standard lets be left out.

    Raises VisionError: undecodable_image, with how much of it came; OSError where it is broken.
    """
    if jpeg.frame not in (*_SEQUENTIAL, _PROGRESSIVE):
        image.load()  # arithmetic coding's decoder cannot wait
        return
    image.load_prepare()
    feed = _Feed(image)
    try:
        feed.give(data[: jpeg.end])
        idles = feed.idles()
        if not feed.done and idles and jpeg.has_several_scans and _has_all_scans(jpeg):
            feed.give(_restart(data[: jpeg.end]))  # if it waits for this one, it lacks pixel data next
            feed.give(_ONES)
            if not feed.left:
                feed.give(b"\xff\xd9")  # of several scans no row is made before the end
    finally:
        feed.decoder.cleanup()
    image.tile = []
    if not feed.done:
        raise VisionError(Code.UNDECODABLE_IMAGE, _what_came(image, jpeg))


class _Feed:
    """Pillow's decoder of a picture, given its bytes by and by."""

    def __init__(self, image: ImageFile) -> None:
        [(name, extents, _, args)] = image.tile
        self.decoder = Image._getdecoder(image.mode, name, args, image.decoderconfig)
        self.decoder.setimage(image.im, extents)
        self.done = False
        self.left = b""
        """What it could not use yet."""

    def give(self, more: bytes) -> None:
        given = self.left + more
        used, status = self.decoder.decode(given)
        if status < 0:
            raise OSError("broken data")
        self.done = used < 0
        self.left = given[used:]

    def idles(self) -> bool:
        """Whether it looks for a marker and not for pixel data.

        It looks up to 57 bits ahead. If it lacks pixel data, it uses none until it has so many bits; if it looks for a
        marker, it skips what is none at once.
        """
        idle = 0
        for _ in range(_PROBES):
            if self.done:
                break
            self.give(_ONES)
            idle = 0 if self.left else idle + 1
        return idle >= _IDLE


def _check_kind(frame: int, bits: int) -> None:
    kind = None
    if frame == _JPEG_LS:
        kind = "JPEG-LS picture"
    elif frame in _LOSSLESS:
        kind = "lossless JPEG"
    elif frame in _HIERARCHICAL:
        kind = "hierarchical JPEG"
    elif bits != 8:
        kind = f"JPEG with {bits} bits a channel"
    if kind:
        raise VisionError(
            Code.UNSUPPORTED_FORMAT,
            f"This is a {kind}, which browsers do not show either; send one with 8 bits, or a PNG.",
        )


def _restart(data: bytes) -> bytes:
    """Return the restart marker that comes next, where such come at all."""
    last = data.rfind(b"\xff\xda")
    markers = _RESTART.findall(data, last)
    return b"\xff" + bytes([0xD0 + ((markers[-1][1] + 1) % 8 if markers else 0)])


def _has_all_scans(jpeg: Jpeg) -> bool:
    """Whether each component came; without an end marker, whether each of its coefficients came to its last bit."""
    came: dict[int, dict[int, int]] = {}
    for scan in jpeg.scans:
        count = scan[0]
        first, last, low = scan[1 + 2 * count], scan[2 + 2 * count], scan[3 + 2 * count] & 15
        for component in scan[1 : 1 + 2 * count : 2]:
            came.setdefault(component, {}).update(dict.fromkeys(range(first, min(last, 63) + 1), low))
    if len(came) < jpeg.components:
        return False
    progressive = jpeg.frame == _PROGRESSIVE
    if jpeg.ended:
        return all(0 in levels for levels in came.values())
    return not progressive or all(len(levels) == 64 and not any(levels.values()) for levels in came.values())


def _what_came(image: ImageFile, jpeg: Jpeg) -> str:
    image.tile = []
    if jpeg.has_several_scans:
        came = f"its first {len(jpeg.scans)} scans came, or a part of the last of them"
    else:
        box = image.getbbox()  # rows that did not come are black yet
        came = f"about {100 * (box[3] if box else 0) // image.height} % of its rows came"
    return f"The JPEG is cut short: {came}; send it again in full."
