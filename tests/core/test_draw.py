"""Drawn answers: readable at any size, the same colours everywhere, nothing of the file but its pixels."""

import asyncio
import io
import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from testkit.photographs import PHOTOS, encoded
from testkit.programs import need
from testkit.servers import ROOT
from vision.core import draw as drawing
from vision.core.draw import PALETTE, colour, draw, drawn
from vision.core.errors import Code, VisionError
from vision.core.look import Question, Seen, decode_in_thread
from vision.core.schemas import Marks
from vision.tasks import TASKS

BOX = Marks(boxes=[("person", 0.88, (0.2, 0.2, 0.8, 0.9))])
SAID = Marks(lines=["a man looks through a camera"])


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def count(picture: Image.Image, wanted: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == wanted).all(axis=2).sum())


@pytest.mark.parametrize(
    "size", [(1280, 853), (640, 480), (160, 120), (16, 16), (1280, 13), (13, 1280), (1, 1), (100, 1)]
)
def test_words_have_room_at_any_size(size: tuple[int, int]) -> None:
    canvas = draw(grey(*size), [BOX, SAID])
    width, height = max(1, round(size[0] * (scale := max(1, 640 / max(size))))), max(1, round(size[1] * scale))
    assert max(width, 320) == canvas.width
    assert canvas.height > height
    assert count(canvas, colour("person")) > 500  # the back of the label
    strip = np.asarray(canvas)[max(height, canvas.height - 40) :]
    assert (strip > 200).any()  # the sentence


def test_a_box_stands_where_the_object_is() -> None:
    canvas = np.asarray(draw(grey(1000, 500), [BOX]))
    assert canvas.shape == (500, 1000, 3)
    for y, x in ((300, 200), (300, 799), (449, 500)):
        near = canvas[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).tolist()
        assert list(colour("person")) in near
    assert canvas[300, 500].tolist() == [128, 128, 128]


def test_labels_hide_no_better_label() -> None:
    boxes = [(f"label {n}", 0.9 - n / 100, (200.0, 200.0, 440.0, 440.0)) for n in range(60)]
    boxes.append(("x" * 300, 0.1, (0.0, 0.0, 10.0, 10.0)))
    placed = drawing._labels(boxes, drawing._font(20), (640, 640))
    assert placed[0][0] == "label 0 90%"
    assert 4 < len(placed) < 60
    assert "…" in placed[-1][0]
    for (_, _, one), (_, _, other) in itertools.combinations(placed, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for _, _, (x1, y1, x2, y2) in placed:
        assert min(x1, y1) >= 0
        assert max(x2, y2) < 640


HOSTILE = ["", " ", "\n\r\t\0", "x" * 10_000, "<b>&amp;</b>", "\u202eabc", "猫", "😀" * 300, "\ud800", "a\nb"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_can_be_drawn(text: str) -> None:
    canvas = draw(grey(300, 200), [Marks([(text, 0.5, (0, 0, 1, 1))], [text, f"{text} {text}"])])
    assert canvas.width == 640
    assert canvas.height < 640


SPELT = {
    "猫": "Mao",
    "кошка": "koshka",
    "γάτα": "gata",
    "قط": "qt",
    "חתול": "htvl",
    "แมว": "aemw",
    "crème brûlée": "creme brulee",
    "Füße": "Fusse",
    "😀": ":grinning:",
}


@pytest.mark.parametrize("label", SPELT)
def test_what_the_font_lacks_is_spelt_in_ascii(label: str) -> None:
    """Each character of it would be drawn as the same empty box: the font's own glyph for what it lacks."""
    font = drawing._font(20)
    empty = bytes(font.getmask("\uffff"))
    assert any(bytes(font.getmask(one)) == empty for one in label)
    [(words, back, _)] = drawing._labels([(label, 0.5, (0, 0, 99, 99))], font, (640, 640))
    assert words == f"{SPELT[label]} 50%"
    assert back == colour(label)
    assert not any(bytes(font.getmask(one)) == empty for one in words)
    strip = [np.asarray(draw(grey(640, 480), [Marks(lines=[text])]))[480:] for text in (label, SPELT[label])]
    assert (strip[0] == strip[1]).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (1, 1, 1, 1), (-0.5, -0.5, 1.5, 1.5), (0.9, 0.9, 0.1, 0.1), (0, 0, 1, 1)]
)
def test_any_box_can_be_drawn(box: tuple[float, float, float, float]) -> None:
    draw(grey(300, 200), [Marks([("odd", 1.0, box)])])


def test_the_colours_are_told_apart() -> None:
    """As colour-blind people see them, too: a matrix each by G. Machado and others, 2009, of full severity."""
    sight = {
        "all": np.eye(3),
        "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    }
    linear = (np.array(PALETTE) / 255) ** 2.2
    for matrix in sight.values():
        shown = (linear @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2) * 255
        assert min(np.abs(one - other).max() for one, other in itertools.combinations(shown, 2)) > 25


def test_the_page_gives_a_label_the_same_colour() -> None:
    need("node", "nodejs")
    labels = ["person", "dog", "dining table", "猫", "é", "😀", "", "x" * 500]
    module = (ROOT / "vision" / "api" / "page" / "colours.js").read_text()
    script = f"{module} console.log(JSON.stringify({json.dumps(labels)}.map(colour)));"
    run = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == ["#{:02x}{:02x}{:02x}".format(*colour(label)) for label in labels]


def seen_with(size: tuple[int, int]) -> tuple[Seen, dict[str, Question]]:
    task = replace(TASKS["detection"], marks=lambda _: BOX)
    model: Any = type("M", (), {"task": task})()
    found: Any = BOX
    return Seen(size, {"detection": found}, {"total": 1.0}), {"detection": Question(model, task.options())}


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png"])
def test_nothing_of_the_file_is_in_it(media_type: Any) -> None:
    picture = Image.open(PHOTOS["bus"])
    exif = picture.getexif()
    exif[ExifTags.Base.ImageDescription] = "the secret description"
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.GPSInfo)[2] = (51.5, 0, 0)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "the secret comment")
    for data in (
        encoded(picture, "JPEG", exif=exif, comment="the secret comment"),
        encoded(picture, "PNG", exif=exif, pnginfo=text),
    ):
        seen, questions = seen_with((1080, 810))
        answer = asyncio.run(drawn(data, seen, questions, decode=decode_in_thread, media_type=media_type))
        assert isinstance(answer, Seen)
        assert answer.rendered
        assert b"secret" not in answer.rendered
        shown = Image.open(io.BytesIO(answer.rendered))
        assert shown.get_format_mimetype() == media_type
        assert shown.size == (1080, 810)  # turned as the person saw it
        assert not dict(shown.getexif())
        assert not {"exif", "icc_profile", "comment", "Comment", "xmp"} & set(shown.info)


def test_what_was_not_seen_is_not_drawn_and_what_cannot_be_drawn_says_so() -> None:
    seen, questions = seen_with((10, 10))
    failed = VisionError(Code.EMPTY_IMAGE, "The picture has no bytes.")

    def run(image: bytes | VisionError, seen: Seen | VisionError) -> Seen | VisionError:
        return asyncio.run(drawn(image, seen, questions, decode=decode_in_thread, media_type="image/jpeg"))

    assert run(failed, failed) is failed
    assert run(b"x", failed) is failed
    answer = run(Path(__file__).read_bytes(), seen)
    assert isinstance(answer, VisionError)
    assert answer.code == Code.UNSUPPORTED_FORMAT
