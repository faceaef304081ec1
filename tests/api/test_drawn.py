"""Answers as pictures: beside JSON where `render` asks for it, or in its place where Accept prefers one."""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from testkit.photographs import PHOTOS, encoded
from vision.api.requests import preferred

register_heif_opener()

BUS = PHOTOS["bus"].read_bytes()


def shown(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("endpoint", ["/classify", "/caption", "/detect", "/analyze"])
def test_render_puts_a_picture_beside_each_result(client: httpx.Client, endpoint: str) -> None:
    files = [("images", BUS), ("images", b"broken"), ("images", PHOTOS["cat"].read_bytes())]
    plain = client.post(endpoint, files=files).json()["results"]
    drawn = client.post(endpoint, files=files, data={"render": "true"}).json()["results"]
    for one, other in zip(plain, drawn, strict=True):
        assert "rendered" not in one
        if "error" in one:
            assert other["error"]["code"] == one["error"]["code"]
            continue
        assert other.keys() - one.keys() == {"rendered"}
        picture = shown(base64.b64decode(other["rendered"], validate=True))
        assert picture.format == "JPEG"
        assert picture.size[0] in (one["size"]["width"], 640)
        assert other["ms"].keys() - one["ms"].keys() == {"render"}


def test_insights_are_drawn_beside_their_results_only(client: httpx.Client) -> None:
    files = [("images", BUS), ("images", PHOTOS["cat"].read_bytes())]
    answer = client.post("/insights", files=files, data={"render": "true"}).json()
    assert answer["insights"]
    assert all(shown(base64.b64decode(one["rendered"])).format == "JPEG" for one in answer["results"])
    refused = client.post("/insights", files=files, headers={"accept": "image/jpeg"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_images")


@pytest.mark.parametrize("render", [True, "true", 1, "1"])
def test_render_is_a_yes_or_no_in_every_form_of_a_request(client: httpx.Client, render: Any) -> None:
    text = base64.b64encode(BUS).decode()
    [said] = client.post("/detect", json={"images": [text], "render": render}).json()["results"]
    assert said["rendered"]
    answer = client.post(f"/detect?render={str(render).lower()}", content=BUS, headers={"content-type": "image/jpeg"})
    assert answer.json()["results"][0]["rendered"]
    assert "rendered" not in client.post("/detect", json={"images": [text], "render": False}).json()["results"][0]
    assert (
        client.post("/detect", json={"images": [text], "render": "loudly"}).json()["error"]["code"] == "invalid_option"
    )


@pytest.mark.parametrize(("accept", "format"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/*", "JPEG")])
@pytest.mark.parametrize("endpoint", ["/detect", "/analyze"])
def test_accept_makes_the_answer_a_picture(client: httpx.Client, endpoint: str, accept: str, format: str) -> None:
    answer = client.post(endpoint, files={"images": BUS}, headers={"accept": accept})
    assert answer.status_code == 200
    picture = shown(answer.content)
    assert picture.format == format
    assert answer.headers["content-type"] == f"image/{format.lower()}"
    assert picture.width == 810


def test_heic_comes_back_as_what_a_browser_shows(client: httpx.Client) -> None:
    heic = encoded(Image.open(PHOTOS["bus"]), "HEIF")
    answer = client.post("/analyze", content=heic, headers={"accept": "image/jpeg", "content-type": "image/heic"})
    assert shown(answer.content).format == "JPEG"


def test_errors_stay_json(client: httpx.Client) -> None:
    def ask(files: Any, endpoint: str = "/detect", **data: str) -> tuple[int, str]:
        answer = client.post(endpoint, files=files, data=data, headers={"accept": "image/png"})
        return answer.status_code, answer.json()["error"]["code"]

    assert ask([("images", BUS), ("images", BUS)]) == (400, "too_many_images")
    assert ask([("images", b"broken")]) == (415, "unsupported_format")
    assert ask([("images", b"")]) == (422, "empty_image")
    assert ask([("images", BUS)], topk="1") == (400, "invalid_option")
    assert ask([("images", BUS)], "/nowhere") == (404, "not_found")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("application/json, image/png", None),
        ("application/json;q=0.5, image/png", "image/png"),
        ("image/png;q=0.2, image/jpeg;q=0.3", "image/jpeg"),
        ("image/png, application/*;q=0.9", "image/png"),
        ("image/png;q=0, */*", None),
        ("image/png;q=x", None),
        ("IMAGE/PNG", "image/png"),
        ("image/webp", None),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", None),
        (",;,;q=,/", None),
    ],
)
def test_what_accept_prefers(accept: str, expected: str | None) -> None:
    assert preferred(accept) == expected
