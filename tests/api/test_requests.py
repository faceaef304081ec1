"""What people send: each way of sending a picture and its options means what they think it does, or is refused."""

import base64
import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from testkit.photographs import PHOTOS, encoded

BUS = PHOTOS["bus"].read_bytes()
JSON = "application/json"
TEXT = base64.b64encode(BUS).decode()
FORM = {"content-type": "multipart/form-data; boundary=B"}

register_heif_opener()
with Image.open(io.BytesIO(BUS)) as photo:
    LARGE = encoded(photo.resize((1620, 2160)), "BMP")  # 10 MB
    FORMATS = {
        name: encoded(photo.convert("RGB"), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")
    }


def part(head: str, data: bytes) -> bytes:
    """A part of a multipart body with the boundary B."""
    return b"--B\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--B--\r\n"


def best(answer: httpx.Response) -> list[str]:
    """Each picture's first label."""
    assert answer.status_code == 200, answer.text
    return [one["labels"][0]["label"] if "labels" in one else one["error"]["code"] for one in answer.json()["results"]]


def code(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.json()['error']['code']}"


def address(client: httpx.Client, path: str) -> str:
    """A path as it is; the client would take the slashes away."""
    return f"http://{client.base_url.netloc.decode()}{path}"


# base64


def lines(text: str, width: int, end: str) -> str:
    return end.join(text[start : start + width] for start in range(0, len(text), width)) + end


def urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


PADDED = BUS + b"\0" * (-len(BUS) % 3) + b"\0"  # two signs of padding
ENCODERS: dict[str, str] = {
    "in one line": TEXT,
    "base64's command": lines(TEXT, 76, "\n"),
    "Python's encodebytes": base64.encodebytes(BUS).decode(),
    "MIME": lines(TEXT, 76, "\r\n"),
    "PEM": lines(TEXT, 64, "\n"),
    "with blanks about it": f" \t{TEXT}\n",
    "of the other alphabet": urlsafe(BUS),
    "of the other alphabet without padding": urlsafe(PADDED).rstrip("="),
    "with two signs of padding": base64.b64encode(PADDED).decode(),
    "without them": base64.b64encode(PADDED).decode().rstrip("="),
    "with one of them": base64.b64encode(PADDED).decode()[:-1],
    "with one sign of padding left out": base64.b64encode(PADDED + b"\0").decode().rstrip("="),
    "a canvas's data: URL": f"data:image/jpeg;base64,{TEXT}",
    "a data: URL of a wrong type": f"data:image/png;base64,{TEXT}",
    "a data: URL with parameters": f"data:image/jpeg;name=bus.jpg;charset=utf-8;base64,{TEXT}",
    "a data: URL without a type": f"data:;base64,{TEXT}",
    "a data: URL of bytes": f"data:application/octet-stream;base64,{TEXT}",
    "a data: URL in capitals": f"DATA:image/JPEG;BASE64,{TEXT}",
    "a data: URL in lines and the other alphabet": "data:image/jpeg;base64,"
    + lines(urlsafe(BUS).rstrip("="), 76, "\n"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_base64_is_read_as_encoders_write_it(client: httpx.Client, name: str) -> None:
    assert best(client.post("/classify", json={"images": [ENCODERS[name]]})) == ["minibus"]


OTHERS: dict[str, tuple[Any, str]] = {
    "a number": (7, "number"),
    "a fraction": (0.5, "number"),
    "an object": ({"b64": TEXT}, "object"),
    "a list": ([TEXT], "list"),
    "null": (None, "null"),
    "true": (True, "true"),
    "an address": ("https://example.com/bus.jpg", "nothing is fetched"),
    "a bucket's address": ("s3://photos/bus.jpg", "nothing is fetched"),
    "a file's address": ("file:///etc/passwd", "nothing is fetched"),
    "a path": ("/etc/passwd", "something else"),
    "a file's name": ("bus.jpg", "something else"),
    "a sentence": ("a red bus", "something else"),
    "base64 that was cut": (TEXT[: len(TEXT) // 8 * 4 + 1], "cut"),
    "base64 twice": (base64.b64encode(PADDED).decode() * 2, "something else"),
    "a data: URL of a page": ("data:text/html;base64,PGI+", "text/html"),
    "a data: URL of text": ("data:,a%20bus", "no base64"),
    "a data: URL of a drawing": ("data:image/svg+xml,<svg/>", "no base64"),
    "Python's bytes": (str(base64.b64encode(BUS)), ".decode()"),
    "letters of no alphabet": ("é" * 400, "something else"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_base64_is_told_as_what_it_is(client: httpx.Client, name: str) -> None:
    sent, said = OTHERS[name]
    answer = client.post("/classify", json={"images": [sent]})
    assert code(answer) == "400 invalid_base64"
    assert said in answer.json()["error"]["message"]
    assert best(client.post("/classify", json={"images": [sent, TEXT]})) == ["invalid_base64", "minibus"]


# Options in the query string

QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a number": ("/classify?top_k=2", {"top_k": 2}),
    "two": ("/classify?top_k=3&min_score=0.2", {"top_k": 3, "min_score": 0.2}),
    "a fraction": ("/detect?min_score=0.75", {"min_score": 0.75}),
    "a list of one": ("/detect?labels=bus", {"labels": ["bus"]}),
    "a list": ("/detect?labels=bus&labels=person&max_detections=2", {"labels": ["bus", "person"], "max_detections": 2}),
    "a list as JSON": ("/detect?labels=%5B%22bus%22%5D", {"labels": ["bus"]}),
    "a plus for a blank": ("/detect?labels=traffic+light&labels=bus", {"labels": ["traffic light", "bus"]}),
    "features": ("/analyze?features=classification&top_k=1", {"features": ["classification"], "top_k": 1}),
    "an empty one": ("/classify?top_k=", {}),
    "null": ("/classify?top_k=null", {}),
    "none": ("/classify?", {}),
}


def without_times(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    for result in results:
        result.pop("ms")
    return results


SENDERS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "a form": lambda client, path: client.post(path, files={"images": BUS}),
    "JSON": lambda client, path: client.post(path, json={"images": [TEXT]}),
    "a picture": lambda client, path: client.post(path, content=BUS, headers={"content-type": "image/jpeg"}),
}


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("name", QUERIES)
def test_an_option_in_the_query_string_is_heeded_as_in_the_body(client: httpx.Client, sender: str, name: str) -> None:
    path, options = QUERIES[name]
    expected = client.post(path.partition("?")[0], json={"images": [TEXT], **options})
    assert without_times(SENDERS[sender](client, path)) == without_times(expected)


BAD_QUERIES = {
    "a typo": ("/classify?topk=2", "'topk'"),
    "an empty typo": ("/classify?topk=", "'topk'"),
    "another endpoint's": ("/caption?top_k=2", "'top_k'"),
    "no number": ("/detect?min_score=high", "min_score"),
    "out of range": ("/detect?min_score=1.5", "min_score"),
    "twice": ("/classify?top_k=1&top_k=2", "top_k is given 2 times"),
    "labels with a comma": ("/detect?labels=person,bus", "repeat `labels`"),
    "features with a comma": ("/analyze?features=classification,detection", "Repeat `features`"),
    "pictures": ("/classify?images=bus.jpg", "into the body"),
    "a picture's address": ("/classify?image=https://example.com/bus.jpg", "into the body"),
    "broken JSON": ("/detect?labels=[bus", "JSON"),
    "no UTF-8": ("/detect?labels=%ff", "UTF-8"),
    "2,000 names": ("/detect?" + "&".join(f"a{n}=1" for n in range(2000)), "1,000"),
}


@pytest.mark.parametrize("sender", SENDERS)
@pytest.mark.parametrize("name", BAD_QUERIES)
def test_a_wrong_option_in_the_query_string_is_refused(client: httpx.Client, sender: str, name: str) -> None:
    path, said = BAD_QUERIES[name]
    answer = SENDERS[sender](client, path)
    assert code(answer) == ("400 malformed_request" if name in ("no UTF-8", "2,000 names") else "400 invalid_option")
    assert said in answer.json()["error"]["message"]


def test_an_option_in_both_places_is_refused(client: httpx.Client) -> None:
    for answer in (
        client.post("/classify?top_k=2", files={"images": BUS}, data={"top_k": "2"}),
        client.post("/classify?top_k=2", json={"images": [TEXT], "top_k": 3}),
        client.post("/detect?labels=bus", json={"images": [TEXT], "labels": ["person"]}),
    ):
        assert code(answer) == "400 invalid_option"
        assert "in the query string and in the body" in answer.json()["error"]["message"]
    different = client.post("/classify?top_k=2", json={"images": [TEXT], "top_k": None, "min_score": 0})
    assert len(without_times(different)[0]["labels"]) == 2


# A picture as the body


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/*", "Image/PNG; q=1", "application/octet-stream"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_body_that_is_a_picture_is_answered(client: httpx.Client, name: str, media_type: str) -> None:
    answer = client.post("/classify?top_k=1", content=FORMATS[name], headers={"content-type": media_type})
    assert best(answer) == ["minibus"]


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""}])
@pytest.mark.parametrize("name", FORMATS)
def test_so_is_one_of_no_type(client: httpx.Client, name: str, headers: dict[str, str]) -> None:
    """As `curl --data-binary @bus.jpg` sends it."""
    assert best(client.post("/classify?top_k=1", content=FORMATS[name], headers=headers)) == ["minibus"]


NO_PICTURES: dict[str, tuple[str | None, bytes, str]] = {
    "text as a picture": ("image/jpeg", b"a bus", "415 unsupported_format"),
    "nothing as a picture": ("image/jpeg", b"", "422 empty_image"),
    "half a picture": ("image/jpeg", BUS[:60_000], "422 undecodable_image"),
    "a TIFF": ("image/tiff", encoded(Image.new("RGB", (8, 8)), "TIFF"), "415 unsupported_format"),
    "base64 as a picture": ("image/jpeg", TEXT.encode(), "415 unsupported_format"),
    "bytes": ("application/octet-stream", bytes(1000), "415 unsupported_format"),
    "a large picture": ("image/bmp", b"BM" + bytes(20_000_000), "413 image_too_large"),
    "a larger request": ("image/bmp", b"BM" + bytes(64_000_000), "413 request_too_large"),
    "JSON without a type": (None, b'{"images": []}', "415 unsupported_media_type"),
    "JSON by curl's -d": ("application/x-www-form-urlencoded", b'{"images": []}', "415 unsupported_media_type"),
    "BMI is no picture": ("application/x-www-form-urlencoded", b"BMI=22&name=x", "415 unsupported_media_type"),
    "nothing of no type": (None, b"", "415 unsupported_media_type"),
    "a picture of plain text": ("text/plain", BUS, "415 unsupported_media_type"),
    "a picture of JSON": ("application/json", BUS, "400 malformed_request"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_a_body_that_is_no_picture_is_refused(client: httpx.Client, name: str) -> None:
    media_type, body, expected = NO_PICTURES[name]
    headers = {"content-type": media_type} if media_type else {}
    assert code(client.post("/classify", content=body, headers=headers)) == expected


# Forms

DISPOSITION = 'Content-Disposition: form-data; name="images"'
PARTS: dict[str, str] = {
    "C#'s StreamContent": "Content-Type: image/jpeg\r\nContent-Disposition: form-data; name=images",
    "C#'s ByteArrayContent": "Content-Disposition: form-data; name=images",
    "C#'s two filenames": "Content-Disposition: form-data; name=images; filename=b.jpg; filename*=utf-8''b%C3%A9.jpg",
    "bytes": f"{DISPOSITION}\r\nContent-Type: application/octet-stream",
    "a type in capitals": f"{DISPOSITION}\r\nCONTENT-TYPE: IMAGE/PNG; x=y",
    "an empty filename": f'{DISPOSITION}; filename=""\r\nContent-Type: image/jpeg',
    "a filename in the newer form only": f"{DISPOSITION}; filename*=UTF-8''bus.jpg\r\nContent-Type: image/jpeg",
    "a semicolon at the end": f"{DISPOSITION};\r\nContent-Type: image/jpeg",
    "a length": f"{DISPOSITION}\r\nContent-Type: image/jpeg\r\nContent-Length: 1",
    "plain text": f"{DISPOSITION}\r\nContent-Type: text/plain",
    "a filename and no type": f'{DISPOSITION}; filename="bus.jpg"',
}


@pytest.mark.parametrize("photograph", [BUS, LARGE])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_a_picture_whatever_it_is_called(client: httpx.Client, name: str, photograph: bytes) -> None:
    option = part('Content-Disposition: form-data; name="top_k"', b"1")
    answer = client.post("/classify", content=form(part(PARTS[name], photograph), option), headers=FORM)
    assert best(answer) == ["minibus"]
    whole = client.post("/classify", files={"images": photograph}, data={"top_k": "1"})
    assert without_times(answer) == without_times(whole)


@pytest.mark.parametrize("media_type", ["text/plain; charset=UTF-8", "application/json", "application/octet-stream"])
def test_an_option_may_have_a_type(client: httpx.Client, media_type: str) -> None:
    """As Spring and C# send them."""
    picture = part(f"{DISPOSITION}\r\nContent-Type: image/jpeg", BUS)
    option = part(f'Content-Disposition: form-data; name="top_k"\r\nContent-Type: {media_type}', b"2")
    answer = client.post("/classify", content=form(picture, option), headers=FORM)
    assert len(without_times(answer)[0]["labels"]) == 2


def test_a_picture_of_another_name_is_told_so(client: httpx.Client) -> None:
    head = 'Content-Disposition: form-data; name="photo"\r\nContent-Type: image/bmp'
    answer = client.post("/classify", content=form(part(head, LARGE)), headers=FORM)
    assert code(answer) == "400 invalid_option"
    assert "`images`" in answer.json()["error"]["message"]


NAMES: dict[str, tuple[str, ...]] = {
    "PHP and axios": ("images[]", "images[]"),
    "one image": ("image",),
    "one file": ("file",),
    "several of one name": ("file", "file"),
    "mixed": ("file", "image", "images[]"),
}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_count_under_usual_names(client: httpx.Client, name: str) -> None:
    sent = NAMES[name]
    assert best(client.post("/classify", files=[(one, BUS) for one in sent])) == ["minibus"] * len(sent)
    fields: dict[str, list[str]] = {}
    for one in sent:
        fields.setdefault(one, []).append(TEXT)
    assert best(client.post("/classify", json=fields)) == ["minibus"] * len(sent)
    if len(sent) == 1:
        assert best(client.post("/classify", json={sent[0]: TEXT, "top_k": 1})) == ["minibus"]
        assert code(client.post("/classify", json={sent[0]: {"b64": TEXT}})) == "400 malformed_request"
        assert code(client.post("/classify", json={sent[0]: 7})) == "400 malformed_request"


def test_pictures_of_mixed_names_are_answered_in_their_order(client: httpx.Client) -> None:
    sent = [("file", b"text"), ("image", BUS), ("file", BUS), ("images[]", b"text")]
    assert best(client.post("/classify", files=sent)) == [
        "unsupported_format",
        "minibus",
        "minibus",
        "unsupported_format",
    ]


EMPTY: dict[str, dict[str, Any]] = {
    "a number": {"top_k": ""},
    "all": {"top_k": "", "min_score": "", "model": ""},
    "one of two": {"top_k": ["", ""]},
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_option_is_the_default(client: httpx.Client, name: str) -> None:
    answer = client.post("/classify", files={"images": BUS}, data=EMPTY[name])
    assert without_times(answer) == without_times(client.post("/classify", files={"images": BUS}))


def test_so_is_an_empty_list(client: httpx.Client) -> None:
    for data in ({"labels": ""}, {"labels": ["", ""], "min_score": ""}):
        answer = client.post("/detect", files={"images": BUS}, data=data)
        assert without_times(answer) == without_times(client.post("/detect", files={"images": BUS}))
    for features in ("", ["", "classification", "detection", "captioning"]):
        answer = client.post("/analyze", files={"images": BUS}, data={"features": features})
        assert set(answer.json()["results"][0]) >= {"classification", "captioning", "detection"}


TEXTS: dict[str, tuple[str, str]] = {
    "base64": (TEXT, "goes into JSON"),
    "base64 in lines": (base64.encodebytes(BUS).decode(), "goes into JSON"),
    "a data: URL": (f"data:image/jpeg;base64,{TEXT}", "goes into JSON"),
    "base64 of 10 MB": (base64.b64encode(LARGE).decode(), "goes into JSON"),
    "an address": ("https://example.com/bus.jpg", "send a file"),
    "a path": ("/etc/passwd", "send a file"),
    "nothing": ("", "send a file"),
}


@pytest.mark.parametrize("called", ["images", "image", "images[]"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_part_of_text_is_told_to_be_a_file(client: httpx.Client, name: str, called: str) -> None:
    text, said = TEXTS[name]
    answer = client.post("/classify", files=[(called, (None, text))])
    assert code(answer) == "400 not_a_file"
    assert said in answer.json()["error"]["message"]


# The rest

CODINGS: dict[str, bytes] = {
    "gzip": gzip.compress(BUS),
    "deflate": zlib.compress(BUS),
    "br": BUS,
    "identity, gzip": gzip.compress(BUS),
    "GZIP": gzip.compress(BUS),
    "x-unknown": BUS,
}


@pytest.mark.parametrize("media_type", ["image/jpeg", JSON, FORM["content-type"]])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_body_is_refused(client: httpx.Client, coding: str, media_type: str) -> None:
    headers = {"content-type": media_type, "content-encoding": coding}
    answer = client.post("/classify", content=CODINGS[coding], headers=headers)
    assert code(answer) == "415 unsupported_media_type"
    assert "Content-Encoding" in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_as_it_is_may_say_so(client: httpx.Client, coding: str) -> None:
    headers = {"content-type": "image/jpeg", "content-encoding": coding}
    assert best(client.post("/classify", content=BUS, headers=headers)) == ["minibus"]
    wrong = client.post("/classify", content=BUS, headers={**headers, "content-type": "video/mp4"})
    assert code(wrong) == "415 unsupported_media_type"
    assert "accept-encoding" not in wrong.headers


@pytest.mark.parametrize(
    "path", ["/classify/", "//classify", "//classify//", "/classify/?top_k=1", "///classify?top_k=1"]
)
def test_more_slashes_mean_the_same(client: httpx.Client, path: str) -> None:
    answer = httpx.post(address(client, path), files={"images": BUS})
    assert best(answer) == ["minibus"]
    assert code(httpx.get(address(client, path))) == "405 method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/class/ify", "/classify/x", "/v1/classify", "/classify%2Fx", "//metrics", "/metrics/"]
)
def test_other_paths_are_still_unknown(client: httpx.Client, path: str) -> None:
    assert code(httpx.post(address(client, path), files={"images": BUS})) == "404 not_found"


def test_labels_joined_with_commas_are_told_to_be_repeated(client: httpx.Client) -> None:
    for labels in ("person,bus", "person, bus"):
        for answer in (
            client.post("/detect", files={"images": BUS}, data={"labels": labels}),
            client.post("/detect", json={"images": [TEXT], "labels": [labels]}),
        ):
            assert code(answer) == "400 invalid_option"
            assert "repeat `labels`" in answer.json()["error"]["message"]
    unknown = client.post("/detect", json={"images": [TEXT], "labels": ["person,unicorn"]})
    assert code(unknown) == "400 invalid_option"
    assert "repeat" not in unknown.json()["error"]["message"]
