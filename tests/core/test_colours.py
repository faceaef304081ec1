"""The same colours get the same answers, whatever colour profile they are stored with."""

import difflib
import io
from random import Random

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from testkit import profiles
from testkit.photographs import PHOTOS, encoded
from tests.core.test_pictures import analyze
from vision.core import colours
from vision.core.decode_process import DecodeProcess
from vision.core.images import LIMITS, decode, decode_reduced

SPACES = [name for name in profiles.SPACES if name != "sRGB"]
GAMMA = 1.3
"""Of inks and greys, far from sRGB's: what ignores the profile answers something else."""


@pytest.fixture(scope="module", params=["bus", "coffee", "hopper"])
def photo(request: pytest.FixtureRequest) -> Image.Image:
    with Image.open(PHOTOS[request.param]) as image:
        picture = image.convert("RGB")
    picture.thumbnail((640, 640), Image.Resampling.BICUBIC)
    return picture


@pytest.fixture(scope="module")
def bus() -> Image.Image:
    with Image.open(PHOTOS["bus"]) as image:
        return image.convert("RGB").resize((480, 640))


def apart(data: bytes, expected: Image.Image) -> float:
    """Mean difference in levels of 255."""
    return float(np.abs(np.asarray(decode(data)).astype(int) - np.asarray(expected)).mean())


def in_grey(picture: Image.Image, gamma: float) -> Image.Image:
    light = profiles.linear(np.asarray(picture.convert("L")) / 255, None)
    return Image.fromarray((profiles.stored(light, gamma) * 255).round().astype(np.uint8))


def stored(photo: Image.Image) -> dict[str, tuple[bytes, Image.Image]]:
    """The photo in each space, as a file, and what it shows, in sRGB."""
    inks, grey = profiles.in_inks(photo, GAMMA), in_grey(photo, GAMMA)
    shown = Image.fromarray(np.asarray(photo.convert("L").convert("RGB")))
    icc, jpeg = profiles.grey_profile(GAMMA), {"quality": 97, "subsampling": 0}
    return {
        **{
            name: (encoded(profiles.in_space(photo, name), icc_profile=profiles.rgb_profile(name)), photo)
            for name in SPACES
        },
        "CMYK": (encoded(inks, "JPEG", **jpeg, icc_profile=profiles.cmyk_profile(GAMMA)), photo),
        "grey": (encoded(grey, icc_profile=icc), shown),
        "grey with alpha": (encoded(grey.convert("LA"), icc_profile=icc), shown),
        "a grey JPEG": (encoded(grey, "JPEG", **jpeg, icc_profile=icc), shown),
    }


def test_every_model_answers_as_about_srgb(client: httpx.Client, photo: Image.Image) -> None:
    for name, (data, shown) in stored(photo).items():
        answer, expected = analyze(client, data, encoded(shown))
        scores, wanted = (
            {label["label"]: label["score"] for label in one["classification"]["labels"]} for one in (answer, expected)
        )
        best = max(wanted, key=lambda label: wanted[label])
        assert scores[best] == pytest.approx(wanted[best], abs=0.05), name
        objects, others = (
            [found for found in one["detection"]["objects"] if found["score"] > 0.4] for one in (answer, expected)
        )
        assert [found["label"] for found in objects[:1]] == [found["label"] for found in others[:1]], name
        for found, other in zip(objects[:1], others[:1], strict=True):
            assert found["score"] == pytest.approx(other["score"], abs=0.05), name
            assert found["box"] == pytest.approx(other["box"], abs=20), name
        pictures = [("images", data), ("images", encoded(shown))]
        # A narrow search may turn at a rounding.
        wide = client.post("/caption", files=pictures, data={"num_beams": "8"})
        said, wanted_said = (one["caption"].split() for one in wide.json()["results"])
        assert difflib.SequenceMatcher(None, said, wanted_said).ratio() >= 0.5, (name, said, wanted_said)


def test_colours_come_out_as_they_were(photo: Image.Image) -> None:
    for name, (data, shown) in stored(photo).items():
        assert apart(data, shown) < 2.5, name


def test_what_has_no_profile_srgbs_own_or_a_broken_one_stays_as_it_is(bus: Image.Image) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    p3 = profiles.rgb_profile("Display P3")
    link = p3[:12] + b"link" + p3[16:]
    for icc in (b"", own, profiles.rgb_profile("sRGB"), b"x", p3[:300], link):
        picture, _ = decode_reduced(encoded(bus, icc_profile=icc))
        assert picture.info == {}
        assert picture.tobytes() == bus.tobytes()
    picture, _ = decode_reduced(encoded(bus, "JPEG", icc_profile=p3 + bytes(colours.MAX_PROFILE_BYTES)))
    assert picture.info == {}


def test_a_profile_of_another_kind_of_picture_changes_nothing(bus: Image.Image) -> None:
    for icc in (profiles.grey_profile(GAMMA), profiles.cmyk_profile(GAMMA)):
        assert decode(encoded(bus, icc_profile=icc)).tobytes() == bus.tobytes()
    inks = bus.convert("CMYK")
    plain, odd = (decode(encoded(inks, "JPEG", **options)) for options in ({}, {"icc_profile": icc_p3()}))
    assert odd.tobytes() == plain.tobytes()


def icc_p3() -> bytes:
    return profiles.rgb_profile("Display P3")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_each_format_brings_its_profile(bus: Image.Image, format: str) -> None:
    other = profiles.in_space(bus, "ProPhoto RGB")
    data = encoded(other, format, quality=95, icc_profile=profiles.rgb_profile("ProPhoto RGB"))
    assert apart(encoded(other), bus) > 10
    assert apart(data, bus) < 5


@pytest.mark.served
def test_large_pictures_bring_it_through_the_decoding_process(bus: Image.Image) -> None:
    process = DecodeProcess(LIMITS, 60)
    large = bus.resize((1200, 2600))
    for data, _ in [*stored(large).values(), (encoded(large), large)]:
        picture, size = process.decode_reduced(data)
        expected, expected_size = decode_reduced(data)
        assert size == expected_size
        assert picture.mode == expected.mode
        pixels, wanted = (colours.to_srgb(np.asarray(one), one) for one in (picture, expected))
        assert pixels.shape == wanted.shape
        assert np.array_equal(pixels, wanted)
    process.close()


@pytest.mark.served
def test_thousands_of_profiles_are_neither_kept_nor_trusted(bus: Image.Image) -> None:
    random, small = Random(0), bus.resize((8, 8))
    whole = [icc_p3(), profiles.grey_profile(GAMMA), profiles.cmyk_profile(GAMMA, 3)]
    for number in range(600):
        icc = bytearray(random.choice(whole))
        for _ in range(random.choice((1, 4, 16))):
            icc[random.randrange(random.choice((132, 300, len(icc))))] = random.randrange(256)
        mode = ("RGB", "L", "CMYK")[number % 3]
        transform = colours.find(bytes(icc), mode)
        picture = small.convert(transform.input_mode if transform else "RGB")
        colours.mark(picture, bytes(icc), transform)
        shown = colours.to_srgb(np.asarray(picture), picture)
        assert shown.shape == (8, 8, 3)
    assert len(colours._found) <= colours.KEPT


def test_an_icc_profile_is_read_as_lcms_reads_it() -> None:
    """Of the profiles that the tests are made with."""
    for name in profiles.SPACES:
        assert ImageCms.getOpenProfile(io.BytesIO(profiles.rgb_profile(name))).profile.xcolor_space == "RGB "
