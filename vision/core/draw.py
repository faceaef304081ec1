"""A picture with what was seen drawn on it: boxes with their labels, and below it the sentences.

For programs that cannot draw it themselves: browsers cannot show HEIC, reports have no scripts. Nothing of the original
but its pixels is in it.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import Literal

from anyascii import anyascii
from PIL import Image, ImageDraw, ImageFont

from vision.core import colours, images
from vision.core.errors import VisionError
from vision.core.look import Decode, Question, Seen
from vision.core.schemas import Marks

MediaType = Literal["image/jpeg", "image/png"]

PALETTE = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66))
"""Seven that the colour-blind tell apart: M. Okabe and K. Ito, Color Universal Design, 2008, without black."""

INK, PAPER = (23, 23, 23), (250, 250, 250)

LEAST = 640
"""A smaller picture is enlarged to this longer side in pixels; words on it could not be read otherwise."""

LEAST_WIDTH, LEAST_LINES = 320, 4
"""The least width in pixels and height in lines of text of what the picture lies on, in its middle."""

Font = ImageFont.FreeTypeFont
Rectangle = tuple[float, float, float, float]
Box = tuple[str, float, Rectangle]
"""Label, score, corners in pixels."""

Colour = tuple[int, int, int]


def colour(label: str) -> Colour:
    """A label's colour, the same everywhere: vision/api/page/colours.js has the same sum.

    501 gives `person` another than its usual neighbours, and cats another than dogs.
    """
    total = 0
    for byte in label.encode(errors="replace"):
        total = (total * 501 + byte) % 2**32
    return PALETTE[total % len(PALETTE)]


async def drawn(
    image: bytes | VisionError,
    seen: Seen | VisionError,
    questions: Mapping[str, Question],
    *,
    decode: Decode,
    media_type: MediaType,
) -> Seen | VisionError:
    """Add to what was seen in a picture how it looks drawn; where it cannot be drawn now, return why.

    The picture is decoded again, in its turn: kept until all models have answered, 5 MB each of all that are in work
    would fill the memory.
    """
    if isinstance(image, VisionError) or isinstance(seen, VisionError):
        return seen
    start = perf_counter()
    marks = [
        questions[word].model.task.marks(result)
        for word, result in seen.results.items()
        if not isinstance(result, VisionError) and not questions[word].head_of
    ]
    try:
        rendered = await decode(image, partial(_encoded, marks, media_type))
    except VisionError as error:
        return error
    took = round((perf_counter() - start) * 1000, 2)
    ms = {**seen.ms, "render": took, "total": round(seen.ms["total"] + took, 2)}
    return replace(seen, ms=ms, rendered=rendered)


def _encoded(marks: Sequence[Marks], media_type: MediaType, picture: Image.Image, _: tuple[int, int]) -> bytes:
    """A picture as images.decode_reduced() returns it -> the file."""
    pixels = colours.to_srgb(images.shrink(picture), picture)
    buffer = io.BytesIO()
    canvas = draw(Image.fromarray(pixels), marks)
    if media_type == "image/png":
        canvas.save(buffer, "PNG", compress_level=3)  # a third of the time of the default 6, and no more bytes
    else:
        canvas.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def draw(picture: Image.Image, marks: Sequence[Marks]) -> Image.Image:
    """Return an RGB picture in sRGB with its marks: at its size, or larger where words would not be readable."""
    scale = LEAST / max(picture.size)
    if scale > 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    font = _font(max(14, max(picture.size) // 48))
    line = sum(font.getmetrics()) + 2
    width, height = max(picture.width, LEAST_WIDTH), max(picture.height, LEAST_LINES * line)
    pad = line // 2
    text = [part for one in marks for sentence in one.lines for part in _wrapped(sentence, font, width - 2 * pad)]
    strip = len(text) * line + 2 * pad if text else 0

    canvas = Image.new("RGB", (width, height + strip), INK)
    left, top = (width - picture.width) // 2, (height - picture.height) // 2
    canvas.paste(picture, (left, top))
    pen = ImageDraw.Draw(canvas)
    across, down = picture.size
    boxes = [
        (label, score, (left + x1 * across, top + y1 * down, left + x2 * across, top + y2 * down))
        for one in marks
        for label, score, (x1, y1, x2, y2) in one.boxes
    ]
    _boxes(pen, boxes, font, (width, height))
    for number, part in enumerate(text):
        pen.text((pad, height + pad + number * line), part, PAPER, font)
    return canvas


def _boxes(pen: ImageDraw.ImageDraw, boxes: Sequence[Box], font: Font, size: tuple[int, int]) -> None:
    stroke = max(2, max(size) // 320)
    for label, _, box in reversed(boxes):
        corners = _inside(box, size)
        pen.rectangle(_grown(corners, 1), outline=INK, width=stroke + 2)  # seen on any background
        pen.rectangle(corners, outline=colour(label), width=stroke)
    for words, back, place in _labels(boxes, font, size):
        pen.rectangle(place, fill=back, outline=INK)
        pen.text((place[0] + 4, place[1] + 1), words, INK if _light(back) else PAPER, font)


def _labels(boxes: Sequence[Box], font: Font, size: tuple[int, int]) -> list[tuple[str, Colour, Rectangle]]:
    """Return the words for each box, their colour and place; of those that would hide a better box's, none."""
    placed: list[tuple[str, Colour, Rectangle]] = []
    height = sum(font.getmetrics()) + 2
    for label, score, box in boxes:
        percent = f" {score:.0%}"
        words = _cut(_plain(label), font, size[0] - font.getlength(percent) - 10) + percent
        free = (
            place
            for place in _places(box, font.getlength(words) + 8, height, size)
            if not any(_meet(place, other) for _, _, other in placed)
        )
        if place := next(free, None):
            placed.append((words, colour(label), place))
    return placed


def _places(box: Rectangle, width: float, height: float, size: tuple[int, int]) -> Iterator[Rectangle]:
    """Where a label may stand: above its box, inside at the top, below, inside at the bottom, farther down inside."""
    x1, y1, x2, y2 = box
    for y in (y1 - height, y1, y2, y2 - height, y1 + height, y2 - 2 * height):
        for x in (x1, x2 - width):
            left = min(max(x, 0), size[0] - width - 1)
            top = min(max(y, 0), size[1] - height - 1)
            yield left, top, left + width, top + height


def _meet(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(box: Rectangle, size: tuple[int, int]) -> Rectangle:
    x1, y1, x2, y2 = box
    left, top = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return left, top, max(left, min(x2, size[0] - 1)), max(top, min(y2, size[1] - 1))


def _grown(box: Rectangle, by: int) -> Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _light(back: Colour) -> bool:
    """Whether ink is easier to read on it than paper: its luminance (WCAG 2.2), against their geometric mean."""
    linear = [
        level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in (c / 255 for c in back)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18


def _wrapped(sentence: str, font: Font, width: float) -> Iterator[str]:
    line = ""
    for word in _plain(sentence).split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = ""
        line = _cut(f"{line} {word}".strip(), font, width)
    if line:
        yield line


def _cut(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _plain(text: str) -> str:
    """One line of what can be shown: a model's labels are anybody's. What the font lacks is spelt in ASCII.

    Fonts with the glyphs of all scripts would be as large as the rest of what drawing needs; the JSON has the label.
    """
    return "".join(c if c.isprintable() else " " for c in anyascii(text[:200]))[:200]


@cache
def _font(size: int) -> Font:
    """The one that Pillow brings along; it has little more than ASCII."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("This build of Pillow has no FreeType; its wheels have it.")
    return font
