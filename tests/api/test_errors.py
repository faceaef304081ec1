"""Bad input gets one typed error, its neighbours their answers, and nothing is fetched."""

import base64
import http.server
import pickle
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from testkit.photographs import PHOTOS, encoded

BUS = PHOTOS["bus"].read_bytes()


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes do not hold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD_PICTURES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 422, "empty_image"),
    "text": (b"this is no picture", 415, "unsupported_format"),
    "unsupported": (encoded(Image.new("RGB", (8, 8)), "TIFF"), 415, "unsupported_format"),
    "truncated jpeg": (BUS[:60_000], 422, "undecodable_image"),
    "truncated png": (PHOTOS["cat"].read_bytes()[:100_000], 422, "undecodable_image"),
    "jpeg magic alone": (b"\xff\xd8\xff\xe0", 422, "undecodable_image"),
    "png without pixels": (png_header(64, 64), 422, "undecodable_image"),
    "100 megapixels": (encoded(Image.new("1", (10_000, 10_000))), 422, "too_many_pixels"),
    "a bomb's header": (png_header(50_000, 50_000), 422, "too_many_pixels"),
    "too many bytes": (b"\xff\xd8\xff" + bytes(20_000_000), 413, "image_too_large"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_gets_its_error_and_its_neighbours_their_answers(client: httpx.Client, name: str) -> None:
    data, status, code = BAD_PICTURES[name]
    alone = client.post("/analyze", files=[("images", data)])
    assert alone.status_code == status
    assert alone.json()["error"]["code"] == code
    assert alone.json()["results"] == [{"error": alone.json()["error"]}]
    assert set(alone.json()["error"]) == {"code", "message", "retryable", "request_id"}

    between = client.post("/classify", files=[("images", BUS), ("images", data), ("images", BUS)])
    assert between.status_code == 200
    first, bad, last = between.json()["results"]
    assert bad["error"]["code"] == code
    assert first["labels"][0]["label"] == last["labels"][0]["label"] == "minibus"


def image(**options: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(BUS).decode()], **options}


Send = Callable[[httpx.Client], httpx.Response]

BAD_REQUESTS: dict[str, tuple[Send, int, str]] = {
    "unknown option": (lambda c: c.post("/classify", json=image(topk=1)), 400, "invalid_option"),
    "unknown option in a form": (
        lambda c: c.post("/classify", files={"images": BUS}, data={"topk": "1"}),
        400,
        "invalid_option",
    ),
    "another endpoint's option": (lambda c: c.post("/caption", json=image(top_k=1)), 400, "invalid_option"),
    "top_k out of range": (lambda c: c.post("/classify", json=image(top_k=0)), 400, "invalid_option"),
    "min_score out of range": (lambda c: c.post("/detect", json=image(min_score=1.5)), 400, "invalid_option"),
    "min_score not a number": (
        lambda c: c.post("/detect", files={"images": BUS}, data={"min_score": "nan"}),
        400,
        "invalid_option",
    ),
    "unknown label": (lambda c: c.post("/detect", json=image(labels=["unicorn"])), 400, "invalid_option"),
    "unknown feature": (lambda c: c.post("/analyze", json=image(features=["ocr"])), 400, "invalid_option"),
    "no feature": (lambda c: c.post("/analyze", json=image(features=[])), 400, "invalid_option"),
    "an option twice": (
        lambda c: c.post("/classify", files={"images": BUS}, data={"top_k": ["1", "2"]}),
        400,
        "invalid_option",
    ),
    "an option as a file": (lambda c: c.post("/classify", files={"images": BUS, "top_k": b"1"}), 400, "invalid_option"),
    "broken JSON in a form": (
        lambda c: c.post("/detect", files={"images": BUS}, data={"labels": "[person"}),
        400,
        "invalid_option",
    ),
    "no image": (lambda c: c.post("/classify", json={}), 400, "missing_image"),
    "image beside images": (lambda c: c.post("/classify", files={"images": BUS, "image": BUS}), 400, "invalid_option"),
    "image beside images in JSON": (lambda c: c.post("/classify", json=image(image="eA==")), 400, "invalid_option"),
    "pictures of another name": (lambda c: c.post("/classify", files={"photo": BUS}), 400, "invalid_option"),
    "an unknown option that is null": (lambda c: c.post("/classify", json=image(topk=None)), 400, "invalid_option"),
    "an unknown option that is empty": (
        lambda c: c.post("/classify", files={"images": BUS}, data={"topk": ""}),
        400,
        "invalid_option",
    ),
    "a urlencoded form": (lambda c: c.post("/classify", files={}, data={"top_k": "1"}), 415, "unsupported_media_type"),
    "no images": (lambda c: c.post("/classify", json={"images": []}), 400, "missing_image"),
    "seventeen images": (lambda c: c.post("/classify", files=[("images", b"x")] * 17), 400, "too_many_images"),
    "images is a string": (lambda c: c.post("/classify", json={"images": "abc"}), 400, "malformed_request"),
    "an image is a number": (lambda c: c.post("/classify", json={"images": [7]}), 400, "invalid_base64"),
    "an image is a path": (lambda c: c.post("/classify", json={"images": ["/etc/passwd"]}), 400, "invalid_base64"),
    "an image is text in a form": (lambda c: c.post("/classify", files={"images": (None, "x")}), 400, "not_a_file"),
    "no JSON": (
        lambda c: c.post("/classify", content=b"{", headers={"content-type": "application/json"}),
        400,
        "malformed_request",
    ),
    "deep JSON": (
        lambda c: c.post("/classify", content=b"[" * 100_000, headers={"content-type": "application/json"}),
        400,
        "malformed_request",
    ),
    "no JSON object": (lambda c: c.post("/classify", json=[1]), 400, "malformed_request"),
    "no boundary": (
        lambda c: c.post("/classify", content=b"x", headers={"content-type": "multipart/form-data"}),
        400,
        "malformed_request",
    ),
    "raw bytes of another kind": (
        lambda c: c.post("/classify", content=BUS, headers={"content-type": "video/mp4"}),
        415,
        "unsupported_media_type",
    ),
    "a pickle": (
        lambda c: c.post("/classify", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"}),
        415,
        "unsupported_media_type",
    ),
    "no content type": (lambda c: c.post("/classify", content=b"x"), 415, "unsupported_media_type"),
    "a large request": (
        lambda c: c.post("/classify", files=[("images", bytes(15_000_000))] * 5),
        413,
        "request_too_large",
    ),
    "a large chunked request": (
        lambda c: c.post(
            "/classify", content=(bytes(1_000_000) for _ in range(70)), headers={"content-type": "application/json"}
        ),
        413,
        "request_too_large",
    ),
    "unknown path": (lambda c: c.get("/nothing"), 404, "not_found"),
    "wrong method": (lambda c: c.get("/classify"), 405, "method_not_allowed"),
    "wrong method on models": (lambda c: c.post("/models"), 405, "method_not_allowed"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_gets_its_error(client: httpx.Client, name: str) -> None:
    send, status, code = BAD_REQUESTS[name]
    response = send(client)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert set(response.json()["error"]) == {"code", "message", "retryable", "request_id"}


def test_unknown_options_are_answered_with_the_known_ones(client: httpx.Client) -> None:
    message = client.post("/classify", json=image(topk=1)).json()["error"]["message"]
    assert "'topk'" in message
    assert "top_k" in message


def test_an_address_is_never_fetched(client: httpx.Client) -> None:
    fetched = threading.Event()

    class Bait(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.set()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BUS)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bait) as bait:
        threading.Thread(target=bait.serve_forever).start()
        url = f"http://127.0.0.1:{bait.server_port}/bus.jpg"
        as_json = client.post("/classify", json={"images": [url]})
        as_field = client.post("/classify", files={"images": (None, url)})
        as_form = client.post("/classify", data={"images": url})
        bait.shutdown()
    assert [r.status_code for r in (as_json, as_field, as_form)] == [400, 400, 415]
    assert not fetched.is_set()


class Marker:
    """Unpickled anywhere, it leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.file,)


def test_a_pickle_is_never_opened(client: httpx.Client, tmp_path: Path) -> None:
    marker = tmp_path / "opened"
    body = pickle.dumps([Marker(marker)])
    for path in ("/classify", "/analyze", "/models", "/readyz"):
        for media_type in ("application/vnd.bentoml+pickle", "application/octet-stream", "application/json"):
            answer = client.post(path, content=body, headers={"content-type": media_type, "payload-container": "x"})
            assert answer.status_code in (400, 405, 415)
    answer = client.post("/classify", files={"images": ("x.pkl", body, "application/vnd.bentoml+pickle")})
    assert answer.json()["error"]["code"] == "unsupported_format"
    assert not marker.exists()
    pickle.loads(body)  # noqa: S301
    assert marker.exists()


def test_a_url_and_a_picture_in_one_request_part_ways(client: httpx.Client) -> None:
    response = client.post("/classify", json={"images": ["http://example.com/a.jpg", *image()["images"]]})
    assert response.status_code == 200
    refused, answered = response.json()["results"]
    assert refused["error"]["code"] == "invalid_base64"
    assert answered["labels"][0]["label"] == "minibus"
