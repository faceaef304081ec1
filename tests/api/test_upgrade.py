"""Offers to upgrade the connection, which stock clients make: each is ignored, its request answered as any other."""

import asyncio
import base64
import http.client
import json
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from testkit.photographs import PHOTOS
from testkit.programs import need
from vision.api.wire import Protocol

BUS = PHOTOS["bus"].read_bytes()
BODY = json.dumps({"images": [base64.b64encode(BUS).decode()], "top_k": 1}).encode()
OVER_1_MB = BODY + b" " * 1_500_000

OFFERS: dict[str, dict[str, str]] = {
    "Java, Ktor, curl --http2": {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    },
    "TLS in place": {"Connection": "upgrade", "Upgrade": "TLS/1.3"},
    "a WebSocket": {
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "eA==",
    },
    "several": {"Connection": "Upgrade", "Upgrade": "IRC/6.9, RTA/x11, vision-frames"},
}


@pytest.mark.parametrize("size", [len(BODY), len(OVER_1_MB)])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
def test_a_request_with_an_offer_is_answered_and_the_next_one(
    server: str, offer: str, chunked: bool, size: int
) -> None:
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=60)
    given = {"Content-Type": "application/json"}
    body = OVER_1_MB[:size]
    used = set[Any]()
    for headers in ({**given, **OFFERS[offer]}, given, {**given, **OFFERS[offer]}):
        pieces = [body[start : start + 70_001] for start in range(0, size, 70_001)]
        connection.request("POST", "/classify", pieces if chunked else body, headers, encode_chunked=chunked)
        used.add(connection.sock)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 200, told
        assert told["results"][0]["labels"][0]["label"] == "minibus"
    connection.close()
    assert len(used) == 1


@pytest.mark.parametrize("offer", OFFERS)
def test_who_awaits_100_continue_gets_it(server: str, offer: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    lines = [f"{name}: {value}" for name, value in OFFERS[offer].items()]
    lines += ["Content-Type: application/json", f"Content-Length: {len(BODY)}", "Expect: 100-continue"]
    with socket.create_connection((host, int(port)), 60) as sent:
        sent.sendall("\r\n".join(["POST /classify HTTP/1.1", "Host: x", *lines, "", ""]).encode())
        assert sent.recv(1000).startswith(b"HTTP/1.1 100 ")
        sent.sendall(BODY)
        answer = http.client.HTTPResponse(sent)
        answer.begin()
        assert answer.status == 200, answer.read()


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def talk(sent: bytes, size: int) -> tuple[list[tuple[str, str, bytes]], Wire, dict[str, Any]]:
    """What the application sees of bytes that arrive in pieces of a size: each request's method, path and body."""
    seen = []
    headers: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        headers.update(request.headers)
        with suppress(ClientDisconnect):
            seen.append((request.method, scope["path"], await request.body()))
            await Response()(scope, receive, send)

    state, wire = ServerState(), Wire()
    protocol = Protocol(Config(app, ws="none", log_config=None), state, {})
    protocol.connection_made(wire)
    for start in range(0, len(sent), size):
        if not wire.closed:
            protocol.data_received(sent[start : start + size])
            await asyncio.sleep(0)
    if wire.closed:
        protocol.connection_lost(None)
    async with asyncio.timeout(60):
        while state.tasks:
            await asyncio.gather(*state.tasks)
    if not wire.closed:
        protocol.connection_lost(None)
    return seen, wire, headers


OFFERED = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Kept: \xe9\r\n"
ROW = (
    b"POST /a?b=c HTTP/1.1\r\n" + OFFERED + b"Content-Length: 5\r\n\r\nPOST "
    b"POST /%62 HTTP/1.1\r\n"
    + OFFERED
    + b"Transfer-Encoding: chunked\r\n\r\n2\r\nGE\r\n3;x\r\nT /\r\n0\r\nX: y\r\n\r\n"
    b"GET /c HTTP/1.1\r\n" + OFFERED + b"\r\n"
    b"POST /d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n!"
    b"OPTIONS * HTTP/1.1\r\n" + OFFERED + b"\r\n"
    b"DELETE /e HTTP/1.1\r\n"
    + OFFERED.replace(b"Upgrade\r\n", b"close, Upgrade\r\n", 1)
    + b"Content-Length: 2\r\n\r\nok"
)
SEEN = [
    ("POST", "/a", b"POST "),
    ("POST", "/b", b"GET /"),
    ("GET", "/c", b""),
    ("POST", "/d", b"!"),
    ("OPTIONS", "*", b""),
    ("DELETE", "/e", b"ok"),
]


@pytest.mark.parametrize("size", [*range(1, 80), 500, 10_000])
def test_requests_in_a_row_are_told_apart_in_pieces_of_any_size(size: int) -> None:
    seen, wire, headers = asyncio.run(talk(ROW, size))
    assert seen == SEEN
    assert wire.written.count(b"HTTP/1.1 200 OK") == len(SEEN)
    assert "upgrade" not in headers
    assert headers["x-kept"] == "\xe9"


BROKEN: dict[str, bytes] = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "a long head": b"X: " + b"a" * 1_100_000 + b"\r\n\r\n",
    "trailers without end": b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 1_100_000,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("size", [1_000, 60_000])
def test_an_offer_excuses_nothing(name: str, size: int) -> None:
    _, wire, _ = asyncio.run(talk(b"POST / HTTP/1.1\r\n" + OFFERED + BROKEN[name], size))
    assert b"malformed_request" in wire.written
    assert wire.closed


def test_curl_offers_http_2(server: str, tmp_path: Path) -> None:
    need("curl", "curl")
    (tmp_path / "bus.jpg").write_bytes(BUS)
    options = ["-F", "images=@bus.jpg", "-w", "\n%{http_code} %{num_connects}\n"]
    one = [*options, f"{server}/classify"]
    run = subprocess.run(
        ["curl", "-sS", "--http2", *one, "--next", "-sS", "--http2", *one], cwd=tmp_path, capture_output=True, text=True
    )
    lines = run.stdout.splitlines()
    assert lines[1::2] == ["200 1", "200 0"], run.stdout + run.stderr
    assert all(json.loads(line)["results"][0]["labels"][0]["label"] == "minibus" for line in lines[::2])


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;

public class Client {
    static byte[] photo;

    static HttpRequest.Builder form(String url, boolean chunked) throws Exception {
        byte[] head = ("--B\\r\\nContent-Disposition: form-data; name=\\"images\\"; filename=\\"bus.jpg\\"\\r\\n"
            + "Content-Type: image/jpeg\\r\\n\\r\\n").getBytes("UTF-8");
        byte[] end = "\\r\\n--B--\\r\\n".getBytes("UTF-8");
        var known = HttpRequest.BodyPublishers.ofByteArrays(java.util.List.of(head, photo, end));
        var all = new java.io.ByteArrayOutputStream();
        all.write(head); all.write(photo); all.write(end);
        byte[] bytes = all.toByteArray();
        var publisher = chunked ? known : HttpRequest.BodyPublishers.ofByteArray(bytes);
        return HttpRequest.newBuilder(URI.create(url)).header("Content-Type", "multipart/form-data; boundary=B")
            .POST(publisher);
    }

    public static void main(String[] given) throws Exception {
        photo = Files.readAllBytes(Path.of(given[1]));
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++)
            for (boolean chunked : new boolean[] {false, true})
                for (boolean expect : new boolean[] {false, true}) {
                    var request = form(given[0] + "/classify", chunked).expectContinue(expect).build();
                    var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
                    System.out.println(answer.statusCode() + " " + answer.body());
                }
        System.out.println(client.send(HttpRequest.newBuilder(URI.create(given[0] + "/version")).build(),
            HttpResponse.BodyHandlers.ofString()).statusCode());
    }
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    need("javac", "default-jdk-headless")
    (tmp_path / "Client.java").write_text(JAVA)
    (tmp_path / "bus.jpg").write_bytes(BUS)
    return tmp_path


def test_a_stock_java_client_is_answered(server: str, program: Path) -> None:
    run = subprocess.run(["java", "Client.java", server, "bus.jpg"], cwd=program, capture_output=True, text=True)
    *forms, version = run.stdout.splitlines()
    assert [line[:4] for line in forms] == ["200 "] * 8, run.stdout + run.stderr
    assert all("minibus" in line for line in forms)
    assert version == "200"
