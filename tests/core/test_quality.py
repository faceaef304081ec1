"""What is measured of every picture in bulk: brightness, contrast, sharpness, and a hash that near copies share."""

import asyncio
import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from scipy.fft import dctn

from testkit.photographs import PHOTOS, encoded
from vision.core import colours, quality
from vision.core.images import decode_reduced
from vision.core.look import Seen, look
from vision.core.schemas import Quality


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(PHOTOS["bus"]) as image:
        return image.convert("RGB")


def bits_apart(one: Quality, other: Quality) -> int:
    return (int(one.hash, 16) ^ int(other.hash, 16)).bit_count()


@pytest.mark.parametrize(("colour", "brightness"), [("black", 0), ("white", 1), ((51, 51, 51), 0.2)])
def test_one_colour_has_its_brightness_and_nothing_else(colour: str | tuple[int, int, int], brightness: float) -> None:
    flat = quality.measure(Image.new("RGB", (300, 200), colour))
    assert (flat.brightness, flat.contrast, flat.sharpness) == (brightness, 0, 0)
    assert int(flat.hash[1:], 16) == 0  # no frequency but the mean


def test_halves_of_black_and_white_have_the_contrast_that_the_formula_says() -> None:
    halves = np.zeros((200, 200, 3), np.uint8)
    halves[:, 100:] = 255
    assert quality.measure(Image.fromarray(halves)).contrast == 0.5


def test_each_number_follows_what_is_done_to_a_photograph(photo: Image.Image) -> None:
    plain = quality.measure(photo)
    assert quality.measure(ImageEnhance.Brightness(photo).enhance(0.5)).brightness < 0.6 * plain.brightness
    assert quality.measure(ImageEnhance.Contrast(photo).enhance(0.5)).contrast < 0.6 * plain.contrast
    assert quality.measure(photo.filter(ImageFilter.GaussianBlur(8))).sharpness < 0.2 * plain.sharpness
    halved = quality.measure(photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS))
    assert halved.sharpness == pytest.approx(plain.sharpness, rel=0.25)


def test_near_copies_share_most_of_the_hash_and_other_photographs_half(photo: Image.Image) -> None:
    plain = quality.measure(photo)
    small = photo.resize((photo.width // 3, photo.height // 3), Image.Resampling.BICUBIC)
    copies = [
        small,
        ImageEnhance.Brightness(photo).enhance(0.7),
        Image.open(io.BytesIO(encoded(photo, "JPEG", quality=30))),
    ]
    assert all(bits_apart(plain, quality.measure(copy)) <= 8 for copy in copies)
    others = [decode_reduced(path.read_bytes())[0] for name, path in PHOTOS.items() if name != "bus"]
    assert all(bits_apart(plain, quality.measure(other)) >= 18 for other in others)


def test_the_hash_is_imagehashs_but_for_how_the_picture_is_made_small() -> None:
    """ImageHash's own lines (phash of its version 4.3), which it would bring SciPy into the service for."""
    for path in PHOTOS.values():
        picture, _ = decode_reduced(path.read_bytes())
        small = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
        low = dctn(small, norm="ortho")[:8, :8]
        theirs = "".join("1" if bit else "0" for bit in (low > np.median(low)).flatten())
        assert (int(theirs, 2) ^ int(quality.measure(picture).hash, 16)).bit_count() <= 4, path


def test_the_numbers_are_those_of_opencv() -> None:
    for path in PHOTOS.values():
        picture, _ = decode_reduced(path.read_bytes())
        few = np.asarray(picture.reduce(max(1, max(picture.size) // 256)))
        luma = cv2.cvtColor(colours.to_srgb(few, picture), cv2.COLOR_RGB2GRAY)
        scale = min(1, 256 / max(luma.shape))
        luma = cv2.resize(luma, (round(luma.shape[1] * scale), round(luma.shape[0] * scale)))
        _, rough = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
        low = cv2.dct(cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8].round(2)
        measured = quality.measure(picture)
        assert measured.brightness == round(luma.mean() / 255, 4)
        assert measured.contrast == round(luma.std() / 255, 4)
        assert measured.sharpness == round(rough.item() ** 2, 2)
        assert measured.hash == np.packbits(low > np.median(low)).tobytes().hex()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (400, 4), (255, 257)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_shape_is_measured(size: tuple[int, int], mode: str) -> None:
    picture, _ = decode_reduced(encoded(Image.new(mode, size, "grey")))
    assert quality.measure(picture).brightness == pytest.approx(128 / 255, abs=1e-3)


def test_a_look_measures_only_when_it_is_asked_to() -> None:
    data = PHOTOS["bus"].read_bytes()
    seen = asyncio.run(look(data, {}, measures=True))
    assert isinstance(seen, Seen)
    assert seen.quality == quality.measure(decode_reduced(data)[0])
    plain = asyncio.run(look(data, {}))
    assert isinstance(plain, Seen)
    assert (plain.quality, plain.size) == (None, seen.size)
