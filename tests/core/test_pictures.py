"""However a picture is stored, it gets the plain picture's answer."""

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from testkit.photographs import PHOTOS, encoded
from vision.core import images

register_heif_opener()

Transpose = Image.Transpose
# How a picture must be stored so that EXIF orientation N shows it upright: the inverse of what N asks a viewer to do.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A bus, upright, small enough to cross to a runner as it is."""
    with Image.open(PHOTOS["bus"]) as image:
        return image.convert("RGB").resize((480, 640), Image.Resampling.BICUBIC)


def analyze(client: httpx.Client, *pictures: bytes) -> list[dict[str, Any]]:
    response = client.post("/analyze", files=[("images", picture) for picture in pictures])
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    for result in results:
        result.pop("ms", None)
    return results


def assert_alike(answer: dict[str, Any], plain: dict[str, Any], tolerance: float) -> None:
    assert answer["size"] == plain["size"]
    best, expected = (result["classification"]["labels"][0] for result in (answer, plain))
    assert best["label"] == expected["label"]
    assert best["score"] == pytest.approx(expected["score"], abs=tolerance)
    found, wanted = (result["detection"]["objects"][0] for result in (answer, plain))
    assert found["label"] == wanted["label"]
    assert found["score"] == pytest.approx(wanted["score"], abs=tolerance)
    assert found["box"] == pytest.approx(wanted["box"], abs=max(1e-3, tolerance * 200))


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(client: httpx.Client, photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = STORED[orientation]
    stored = photo.transpose(method) if method is not None else photo
    plain, turned = analyze(client, encoded(photo), encoded(stored, exif=exif))
    assert turned == plain


@pytest.mark.parametrize(
    ("format", "options"), [("WEBP", {"lossless": True}), ("BMP", {}), ("PNG", {"optimize": True})]
)
def test_lossless_formats_answer_alike(
    client: httpx.Client, photo: Image.Image, format: str, options: dict[str, Any]
) -> None:
    plain, other = analyze(client, encoded(photo), encoded(photo, format, **options))
    assert other == plain


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_answer_nearly_alike(client: httpx.Client, photo: Image.Image, format: str) -> None:
    plain, other = analyze(client, encoded(photo), encoded(photo, format, quality=95))
    assert_alike(other, plain, tolerance=0.06)


def test_cmyk(client: httpx.Client, photo: Image.Image) -> None:
    plain, cmyk = analyze(client, encoded(photo), encoded(photo.convert("CMYK"), "JPEG", quality=98, subsampling=0))
    assert_alike(cmyk, plain, tolerance=0.1)


def test_grey(client: httpx.Client, photo: Image.Image) -> None:
    grey = photo.convert("L")
    as_rgb, as_grey = analyze(client, encoded(grey.convert("RGB")), encoded(grey))
    assert as_grey == as_rgb


def test_sixteen_bits(client: httpx.Client, photo: Image.Image) -> None:
    grey = photo.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8)
    assert deep.mode == "I;16"
    eight, sixteen = analyze(client, encoded(grey), encoded(deep))
    assert sixteen == eight


def test_palette_with_transparency(client: httpx.Client, photo: Image.Image) -> None:
    palette = photo.quantize(255)
    corner = palette.copy()
    corner.putpalette([*(palette.getpalette() or []), 0, 0, 0])
    corner.paste(255, (0, 0, 40, 40))
    white = palette.convert("RGB")
    white.paste("white", (0, 0, 40, 40))
    on_white, transparent = analyze(client, encoded(white), encoded(corner, transparency=255))
    assert transparent == on_white


def test_the_first_frame_of_an_animation(client: httpx.Client, photo: Image.Image) -> None:
    first = photo.quantize(256)
    second = Image.new("P", photo.size)
    gif = encoded(first, "GIF", save_all=True, append_images=[second], duration=100)
    with Image.open(io.BytesIO(gif)) as animation:
        assert getattr(animation, "n_frames", 1) == 2
        frame = animation.convert("RGB")
    still, animated = analyze(client, encoded(frame), gif)
    assert animated == still


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1), (3, 3), (7, 700)])
def test_odd_sizes_get_an_answer(client: httpx.Client, size: tuple[int, int]) -> None:
    [result] = analyze(client, encoded(Image.new("RGB", size, "teal")))
    assert result["size"] == {"width": size[0], "height": size[1]}
    for feature in ("classification", "captioning", "detection"):
        assert "error" not in result[feature]


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (30_001, 301)])
def test_a_sliver_is_refused(client: httpx.Client, size: tuple[int, int]) -> None:
    response = client.post("/classify", files={"images": encoded(Image.new("1", size))})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "bad_dimensions")


def test_a_heic_from_a_phone_is_seen_upright(client: httpx.Client, photo: Image.Image) -> None:
    """A turned picture whose EXIF says so, as phones write it; the starter sees what it sees in the JPEG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo.transpose(Image.Transpose.ROTATE_90), "HEIF", quality=95, exif=exif.tobytes())
    upright, as_heic = analyze(client, encoded(photo), turned)
    assert as_heic["size"] == upright["size"]
    assert_alike(as_heic, upright, tolerance=0.1)


def test_a_heic_cut_short_or_too_large_is_refused(client: httpx.Client, photo: Image.Image) -> None:
    whole = encoded(photo, "HEIF")
    for end in (12, 100, len(whole) // 2, len(whole) - 100):
        response = client.post("/classify", files={"images": whole[:end]})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "undecodable_image"), end


@pytest.mark.parametrize("form", ["JPEG", "progressive", "turned", "MPO", "PNG"])
def test_a_large_photograph_has_boxes_in_its_own_pixels(client: httpx.Client, photo: Image.Image, form: str) -> None:
    """It is decoded to fewer pixels where its format can be; the answer speaks of the original."""
    large = photo.resize((3000, 4000), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = {
        "JPEG": lambda: encoded(large, "JPEG", quality=95),
        "progressive": lambda: encoded(large, "JPEG", quality=95, progressive=True),
        "turned": lambda: encoded(large.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif),
        "MPO": lambda: encoded(large, "MPO", quality=95, save_all=True, append_images=[photo]),
        "PNG": lambda: encoded(large, compress_level=1),
    }[form]()
    small_answer, large_answer = analyze(client, encoded(photo), data)
    assert large_answer["size"] == {"width": 3000, "height": 4000}
    small_bus, large_bus = (answer["detection"]["objects"][0] for answer in (small_answer, large_answer))
    assert large_bus["label"] == small_bus["label"] == "bus"
    assert large_bus["box_normalized"] == pytest.approx(small_bus["box_normalized"], abs=0.02)
    x1, _, x2, _ = large_bus["box"]
    assert x2 - x1 > 2500


@pytest.mark.served
def test_a_reduced_decode_is_the_picture_made_smaller(photo: Image.Image) -> None:
    """Of every mode that a JPEG and a PNG may have, up to where the models' preprocessing begins."""
    for mode in ("RGB", "L", "CMYK"):
        large = photo.resize((2700, 3600), Image.Resampling.BICUBIC).convert(mode)
        for data in (encoded(large, "JPEG", quality=95), *([encoded(large)] if mode != "CMYK" else [])):
            picture, size = images.decode_reduced(data)
            assert size == (2700, 3600)
            assert picture.size == (1350, 1800)
            expected = np.asarray(images.decode(data).resize((1350, 1800), Image.Resampling.BOX)).astype(float)
            assert np.abs(np.asarray(picture) - expected).mean() < 1
    small = encoded(photo, "JPEG")
    assert images.decode_reduced(small)[0] == images.decode(small)


def test_odd_files_of_the_corpora_never_break_the_server(client: httpx.Client, shared: Path) -> None:
    """Fifty files by name, the oddest by experience: crashers, bombs, broken EXIF, 16-bit, palettes, animations."""
    corpora = shared / "corpora"
    wanted = """
        bad_iCCP badadler badcrc empty_ancillary_chunks huge_IDAT huge_eXIf_chunk huge_iCCP_chunk huge_iTXt_chunk
        huge_tEXt_chunk huge_zTXt_chunk huge_sPLT_chunk huge_juNK_unsafe_to_copy gray-16-1.8-tRNS palette-1-1.8-tRNS
        gray-alpha-16-linear broken broken_data_stream background_outside_palette decompression_bomb
        decompression_bomb_extents broken_exif_dpi exif-dpi-zerodivision exif_gps_typeerror exif_typeerror
        hopper_bad_exif empty_gps_ifd icc-after-SOF frozenpond frame_size ignore_frame_size dispose_prev
        comment_after_last_frame duplicate_number_of_loops first_frame_transparency hopper_rle8_row_overflow
        hopper_idat_after_image_end 1_trns i_trns anim_frame1 flower hopper_16bit_qtables hopper_orientation_6
        app13-multiple hopper16 five_channels crash-2020-10-test clipboard dummy hdf5 bw_gradient
    """.split()
    present = [path for path in sorted(corpora.rglob("*")) if path.is_file()]
    files = [next(path for path in present if path.stem == name) for name in wanted]
    assert len(files) == len(set(files)) == 50
    for file in files:
        response = client.post("/analyze", files={"images": file.read_bytes()}, timeout=10)
        assert response.status_code < 500, (file.name, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["code"] in (
                "unsupported_format",
                "undecodable_image",
                "too_many_pixels",
                "bad_dimensions",
            )
    assert client.get("/readyz").status_code == 200
    [result] = analyze(client, PHOTOS["bus"].read_bytes())
    assert result["classification"]["labels"][0]["label"] == "minibus"
