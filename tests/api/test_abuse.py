"""Requests that no honest client sends: bombs, broken forms, hostile JSON, and what is hardly HTTP at all."""

import base64
import json
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest

from testkit.fuzz.bombs import BOMBS
from testkit.fuzz.watch import HANG_SECONDS, check_answer, check_error, check_known_picture, growth, pids
from testkit.photographs import PHOTOS

BUS = PHOTOS["bus"].read_bytes()
JSON = "application/json"
FORM = "multipart/form-data; boundary=B"
END = b"--B--\r\n"


@pytest.fixture(scope="module")
def hurried(server: str) -> Iterator[httpx.Client]:
    """A client that waits as long as an answer may take; at its end the service is as it was."""
    before = pids(server)
    with httpx.Client(base_url=server, timeout=HANG_SECONDS) as client:
        yield client
        check_known_picture(client)
    assert pids(server) == before


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(server: str, hurried: httpx.Client, name: str) -> None:
    bomb = BOMBS[name]
    data = bomb.make()
    with growth(server) as more:
        answer = hurried.post("/classify", files={"images": data})
    assert check_answer(server, answer, 1) == [bomb.outcome]
    if bomb.outcome != "ok":
        assert more.highest < 150


def part(name: bytes, data: bytes, file: bytes | None = None, headers: bytes = b"") -> bytes:
    """A part of a multipart body with the boundary B."""
    filename = b'; filename="' + file + b'"' if file is not None else b""
    disposition = b'Content-Disposition: form-data; name="' + name + b'"' + filename + b"\r\n"
    return b"--B\r\n" + disposition + headers + b"\r\n" + data + b"\r\n"


PICTURE = part(b"images", BUS, b"bus.jpg")

FORMS: dict[str, tuple[str, bytes, str]] = {
    "1,001 files": (FORM, part(b"images", b"", b"x") * 1001 + END, "malformed_request"),
    "1,001 fields": (FORM, PICTURE + part(b"top_k", b"1") * 1001 + END, "malformed_request"),
    "999 unknown fields": (FORM, PICTURE + b"".join(part(b"%d" % n, b"") for n in range(999)) + END, "invalid_option"),
    "100,000 parts": (FORM, part(b"a", b"") * 100_000 + END, "malformed_request"),
    "a large part header": (FORM, part(b"images", BUS, b"x", b"X: " + b"a" * 100_000 + b"\r\n"), "malformed_request"),
    "many part headers": (FORM, part(b"images", BUS, b"x", b"X: a\r\n" * 1000) + END, "malformed_request"),
    "a long field": (FORM, PICTURE + part(b"top_k", b"1" * 2_000_000) + END, "malformed_request"),
    "a long name": (FORM, PICTURE + part(b"n" * 4000, b"1") + END, "invalid_option"),
    "no boundary": ("multipart/form-data", PICTURE + END, "malformed_request"),
    "an empty boundary": ("multipart/form-data; boundary=", PICTURE + END, "malformed_request"),
    "a long boundary": ("multipart/form-data; boundary=" + "B" * 5000, PICTURE + END, "malformed_request"),
    "another boundary": ("multipart/form-data; boundary=C", PICTURE + END, "malformed_request"),
    "no final boundary": (FORM, PICTURE, "malformed_request"),
    "cut in the second picture": (FORM, PICTURE + PICTURE[:100_000], "malformed_request"),
    "cut in a part's head": (FORM, PICTURE[:30], "malformed_request"),
    "nothing": (FORM, b"", "malformed_request"),
    "only the end": (FORM, END, "missing_image"),
    "no name": (FORM, b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, "malformed_request"),
    "no disposition": (FORM, b"--B\r\nContent-Type: image/jpeg\r\n\r\n" + BUS + b"\r\n" + END, "malformed_request"),
    "a form in a form": (
        FORM,
        part(
            b"images",
            PICTURE.replace(b"--B", b"--C") + b"--C--",
            b"x",
            b"Content-Type: multipart/mixed; boundary=C\r\n",
        )
        + END,
        "unsupported_format",
    ),
    "multipart/mixed": ("multipart/mixed; boundary=B", PICTURE + END, "unsupported_media_type"),
    "an option twice": (FORM, PICTURE + part(b"top_k", b"1") * 2 + END, "invalid_option"),
    "an option as a file": (FORM, PICTURE + part(b"top_k", b"1", b"x") + END, "invalid_option"),
    "an option that is deep JSON": (FORM, PICTURE + part(b"top_k", b"[" * 100_000) + END, "invalid_option"),
    "an option that is no UTF-8": (FORM, PICTURE + part(b"top_k", b"\xff\xfe") + END, "invalid_option"),
    "a name that is no UTF-8": (FORM, PICTURE + part(b"\xff\xfe", b"1") + END, "invalid_option"),
    "a name with NUL": (FORM, PICTURE + part(b"a\0b", b"1") + END, "invalid_option"),
    "a path as filename": (FORM, part(b"images", BUS, b"../../etc/passwd") + END, "ok"),
    **{
        f"charset {name}": (f"{FORM}; charset={name}", PICTURE + END, "malformed_request")
        for name in ("utf-16", "utf-7", "punycode", "undefined", "unicode_escape", "idna", "base64", "x" * 1000, '"')
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_a_broken_form_is_answered(server: str, hurried: httpx.Client, name: str) -> None:
    content_type, body, code = FORMS[name]
    with growth(server) as more:
        answer = hurried.post("/classify", content=body, headers={"content-type": content_type})
    assert check_answer(server, answer, 1) == [code]
    assert more.highest < 150
    assert len(answer.content) < 10_000


def with_option(value: bytes) -> bytes:
    return b'{"images": ["eA=="], "top_k": ' + value + b"}"


BODIES: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "100 MB in a string": (lambda: b'{"images": ["' + b"a" * 100_000_000 + b'"]}', "request_too_large"),
    "60 MB of no base64": (lambda: b'{"images": ["' + b"!" * 60_000_000 + b'"]}', "invalid_base64"),
    "100,000 levels": (b"[" * 100_000, "malformed_request"),
    "100,000 levels of objects": (b'{"a":' * 100_000, "malformed_request"),
    "900 levels": (with_option(b"[" * 900 + b"]" * 900), "invalid_option"),
    "ten million pictures": (lambda: b'{"images": [' + b"0," * 10_000_000 + b"0]}", "malformed_request"),
    "a million options": (
        lambda: b'{"images": [""],' + b",".join(b'"%d": 0' % n for n in range(1_000_000)) + b"}",
        "malformed_request",
    ),
    "an option with a long name": (lambda: b'{"images": ["eA=="], "' + b"n" * 5_000_000 + b'": 1}', "invalid_option"),
    "an option twice": (b'{"images": ["eA=="], "top_k": 1, "top_k": 0}', "invalid_option"),
    "pictures twice": (b'{"images": ["' + base64.b64encode(BUS) + b'"], "images": []}', "missing_image"),
    "base64 without padding": (b'{"images": ["eA"]}', "invalid_base64"),
    "base64 of another alphabet": (b'{"images": ["-_=="]}', "unsupported_format"),
    "base64 with lines": (b'{"images": ["eA\\n=="]}', "unsupported_format"),
    "base64 with 30 MB of lines": (lambda: b'{"images": ["' + b"\\n" * 15_000_000 + b'"]}', "empty_image"),
    "a data address": (b'{"images": ["data:image/png;base64,eA=="]}', "unsupported_format"),
    "a data address of 60 MB without end": (
        lambda: b'{"images": ["data:' + b";a" * 30_000_000 + b'"]}',
        "invalid_base64",
    ),
    "a lone surrogate for a picture": (b'{"images": ["\\ud800"]}', "invalid_base64"),
    "a lone surrogate for an option": (with_option(b'"\\ud800"'), "invalid_option"),
    "a lone surrogate for a name": (b'{"images": ["eA=="], "\\udfff": 1}', "invalid_option"),
    "NaN": (with_option(b"NaN"), "invalid_option"),
    "true for 1": (with_option(b"true"), "invalid_option"),
    "Infinity": (with_option(b"-Infinity"), "invalid_option"),
    "1e999": (with_option(b"1e999"), "invalid_option"),
    "an int of 4,000 digits": (with_option(b"9" * 4000), "invalid_option"),
    "an int of a million digits": (with_option(b"9" * 1_000_000), "malformed_request"),
    "an object": (with_option(b"{}"), "invalid_option"),
    "a mark of byte order": (b"\xef\xbb\xbf" + with_option(b"1"), "unsupported_format"),
    "UTF-16": (json.dumps({"images": ["eA=="]}).encode("utf-16"), "unsupported_format"),
    "Latin-1": (b'{"images": ["\xe9"]}', "malformed_request"),
    "NUL": (b"\0" * 1000, "malformed_request"),
    "pictures are null": (b'{"images": null}', "malformed_request"),
    "pictures are an object": (b'{"images": {}}', "malformed_request"),
    "nothing": (b"", "malformed_request"),
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_json_is_answered(server: str, hurried: httpx.Client, name: str) -> None:
    body, code = BODIES[name]
    body = body if isinstance(body, bytes) else body()
    with growth(server) as more:
        answer = hurried.post("/classify", content=body, headers={"content-type": JSON})
    assert check_answer(server, answer, 1) == [code]
    assert more.highest < 5 * len(body) / 1e6 + 50
    assert len(answer.content) < 10_000


def request(headers: str, line: str = "POST /classify HTTP/1.1") -> bytes:
    return f"{line}\r\nHost: x\r\nContent-Type: application/json\r\n{headers}\r\n\r\n".encode("latin-1")


def raw(server: str, *pieces: bytes) -> httpx.Response:
    """Send bytes, read to the end of the connection, and take the first answer apart."""
    host, port = server.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), HANG_SECONDS) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while data := connection.recv(65_536):
                received += data
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused while there was more to send
    head, _, body = received.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in headers)]
    return httpx.Response(int(status.split()[1]), headers=fields, content=body)


LINES: dict[str, tuple[bytes, str]] = {
    "no HTTP": (b"NONSENSE\r\n\r\n", "malformed_request"),
    "every byte": (bytes(range(256)) * 100, "malformed_request"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "malformed_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed_request"),
    "HTTP/3": (request("", "GET /version HTTP/3.0"), "malformed_request"),
    "bare line feeds": (b"GET /version HTTP/1.1\nHost: x\n\n", "malformed_request"),
    "an unknown method": (request("", "BREW /classify HTTP/1.1"), "malformed_request"),
    "a wrong method": (request("Connection: close", "PATCH /classify HTTP/1.1"), "method_not_allowed"),
    "CONNECT": (request("Connection: close", "CONNECT /classify HTTP/1.1"), "method_not_allowed"),
    "a path of 100 kB": (request("", f"GET /{'a' * 100_000} HTTP/1.1"), "malformed_request"),
    "a path of no ASCII": (request("", "GET /\xff HTTP/1.1"), "malformed_request"),
    "a path that leaves": (
        request("Connection: close", "GET /static_content/../../service.py HTTP/1.1"),
        "not_found",
    ),
    "a path with NUL": (request("Connection: close", "GET /static_content/%00 HTTP/1.1"), "not_found"),
    "a header of 2 MB": (request("X: " + "a" * 2_000_000), "malformed_request"),
    "100,000 headers": (request("X: aaaaaaaaaa\r\n" * 100_000), "malformed_request"),
    "100 kB of header": (
        request(f"X: {'a' * 100_000}\r\nContent-Length: 2\r\nConnection: close") + b"{}",
        "missing_image",
    ),
    "NUL in a header": (request("X: a\0b"), "malformed_request"),
    "a folded header": (request("X: a\r\n b"), "malformed_request"),
    "space before a colon": (request("X : a"), "malformed_request"),
    "length and chunks": (
        request("Content-Length: 5\r\nTransfer-Encoding: chunked") + b"0\r\n\r\n",
        "malformed_request",
    ),
    "two lengths": (request("Content-Length: 5\r\nContent-Length: 6") + b"{}    ", "malformed_request"),
    "a negative length": (request("Content-Length: -5"), "malformed_request"),
    "a length of 5,000 digits": (request("Content-Length: " + "9" * 5000), "malformed_request"),
    "an unknown transfer encoding": (request("Transfer-Encoding: gzip"), "malformed_request"),
    "a chunk of no size": (request("Transfer-Encoding: chunked") + b"ZZ\r\n{}\r\n", "malformed_request"),
    "trailers without end": (
        request("Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX: " + b"a" * 2_000_000,
        "malformed_request",
    ),
    "a length too short": (request("Content-Length: 1\r\nConnection: close") + b"{}", "malformed_request"),
    "two content types": (
        request("Content-Type: multipart/form-data\r\nContent-Length: 2\r\nConnection: close") + b"{}",
        "missing_image",
    ),
    "a WebSocket": (
        request(
            "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==",
            "GET /classify HTTP/1.1",
        ),
        "method_not_allowed",
    ),
    "an odd request id": (request("X-Request-ID: \xff\xfe\r\nConnection: close", "GET /x HTTP/1.1"), "not_found"),
    "an odd trace": (
        request("traceparent: 00-zz\r\ntracestate: \xff=,,\r\nContent-Length: 2\r\nConnection: close") + b"{}",
        "missing_image",
    ),
    "BentoML's own headers": (
        request("Bento-Name: x\r\nArgs-Number: z\r\nBatch-Size: x\r\nContent-Length: 2\r\nConnection: close") + b"{}",
        "missing_image",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_what_is_hardly_http_is_answered(server: str, hurried: httpx.Client, name: str) -> None:
    sent, code = LINES[name]
    assert check_error(raw(server, sent)) == code


def test_requests_in_a_row_are_all_answered(server: str) -> None:
    once = request("Content-Length: 2") + b"{}"
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), HANG_SECONDS) as connection:
        connection.sendall(once * 49 + request("Content-Length: 2\r\nConnection: close") + b"{}")
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 400 Bad Request") == received.count(b'"missing_image"') == 50


@pytest.mark.parametrize("ending", [socket.SHUT_WR, socket.SHUT_RDWR])
@pytest.mark.parametrize("sent", [b"", b"POST", request("Content-Length: 500") + b"{}"])
def test_a_client_that_leaves_early_harms_nothing(server: str, hurried: httpx.Client, ending: int, sent: bytes) -> None:
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), HANG_SECONDS) as connection:
        connection.sendall(sent)
        connection.shutdown(ending)
        if ending == socket.SHUT_WR:
            assert b"HTTP/1.1 2" not in b"".join(iter(lambda: connection.recv(65_536), b""))
    assert check_error(hurried.post("/classify", json={})) == "missing_image"
