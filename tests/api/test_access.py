"""Who may ask and how much; what is told of a request to logs, metrics and traces, and what never is."""

import asyncio
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, Served, another, free_port, metric, served, until

KEYS = {"search": "key-of-search-4b1f", "ranking": "key-of-ranking-77aa"}
ENTRIES = ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())
PER_MINUTE = 20


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: keeps (service, trace id, span name) of every span."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, bytes, str]] = []
        self.text = b""
        super().__init__(("127.0.0.1", 0), CollectorHandler)


class CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(names["service.name"], span.trace_id, span.name) for span in scope.spans]
        self.server.text += body
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tmp")


@pytest.fixture(scope="module")
def guarded(
    home: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector, temporary: Path
) -> Iterator[Served]:
    """A service with keys and quotas, which sends its traces to the collector."""
    settings = {
        "VISION_API_KEYS": ENTRIES,
        "VISION_KEY_REQUESTS_PER_MINUTE": str(PER_MINUTE),
        "VISION_KEY_IN_FLIGHT": "2",
        "VISION_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}/v1/traces",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "TMPDIR": str(temporary),
    }
    with served(another(home, tmp_path_factory), **settings) as running:
        yield running


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def picture(**exif: str) -> bytes:
    """The bus, smaller, with EXIF."""
    with Image.open(PHOTOS["bus"]) as image:
        data = Image.Exif()
        data[0x010E] = exif.get("description", "")
        buffer = io.BytesIO()
        image.resize((320, 427)).save(buffer, "JPEG", exif=data)
    return buffer.getvalue()


def test_every_live_key_opens_and_nothing_else_does(guarded: Served) -> None:
    for name in KEYS:
        assert httpx.get(f"{guarded.url}/models", headers=bearer(name)).status_code == 200
    for headers, status, code in (
        ({}, 401, "missing_key"),
        ({"authorization": "Basic eDp5"}, 401, "missing_key"),
        ({"authorization": "Bearer"}, 401, "missing_key"),
        ({"authorization": f"Bearer {KEYS['search']}x"}, 403, "unknown_key"),
        ({"authorization": f"Bearer {ENTRIES.split(':')[1][:64]}"}, 403, "unknown_key"),
    ):
        for answer in (
            httpx.get(f"{guarded.url}/models", headers=headers),
            httpx.post(f"{guarded.url}/classify", headers=headers, files={"images": picture()}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert ("www-authenticate" in answer.headers) == (status == 401)
    for path in ("/livez", "/readyz", "/metrics", "/version", "/docs.json", "/"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200


def test_without_a_key_the_body_is_not_waited_for(guarded: Served) -> None:
    async def run() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(guarded.url.rpartition(":")[2]))
        writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
        writer.close()
        return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 401 ")


def test_a_key_has_its_own_quotas(guarded: Served) -> None:
    """The last test with `ranking`: its minute is used up here, while `search` goes on."""
    runner = guarded.workers()["classification"]

    async def run() -> None:
        async with httpx.AsyncClient(base_url=guarded.url, timeout=60) as client:

            async def ask(name: str) -> httpx.Response:
                return await client.post("/classify", headers=bearer(name), files={"images": picture()})

            runner.suspend()
            working = [asyncio.ensure_future(ask("ranking")) for _ in range(2)]
            await until(lambda: metric(guarded, "vision_requests_in_flight") == 2)
            refused = await ask("ranking")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "quota_exceeded"
            assert refused.headers["retry-after"] == "10"
            runner.resume()
            assert {answer.status_code for answer in await asyncio.gather(*working)} == {200}
            statuses = [(await ask("ranking")).status_code for _ in range(PER_MINUTE)]
            assert 429 in statuses
            assert set(statuses) == {200, 429}
            assert (await ask("search")).status_code == 200

    try:
        asyncio.run(run())
    finally:
        runner.resume()


def test_a_trace_crosses_from_the_public_process_to_the_runners(guarded: Served, collector: Collector) -> None:
    seen = len(collector.spans)
    answer = httpx.post(f"{guarded.url}/analyze", headers=bearer("search"), files={"images": picture()}, timeout=60)
    assert answer.status_code == 200
    wanted = {"vision", "classification", "captioning", "detection"}

    async def traced() -> None:
        while True:
            spans = collector.spans[seen:]
            if any({service for service, trace, _ in spans if trace == one} >= wanted for _, one, _ in spans):
                return
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(traced(), 30))


def test_a_requests_line_in_the_log_says_what_happened(guarded: Served) -> None:
    headers = {**bearer("search"), "x-request-id": "my-request.1"}
    answer = httpx.post(f"{guarded.url}/classify", headers=headers, files={"images": picture()}, timeout=60)
    assert answer.headers["x-request-id"] == "my-request.1"

    async def logged() -> str:
        while True:
            for line in guarded.lines:
                if '"my-request.1"' in line:
                    return line
            await asyncio.sleep(0.05)

    line = json.loads(asyncio.run(asyncio.wait_for(logged(), 30)))
    assert (line["route"], line["status"], line["images"], line["key"]) == ("/classify", 200, 1, "search")
    assert line["models"] == ["efficientnet-lite0:" + answer.json()["results"][0]["model"]["version"]]
    assert 0 < line["ms"] < 60_000
    assert {"time", "level", "logger", "message"} < set(line)
    for other in guarded.lines:
        json.loads(other)


def test_a_request_id_that_could_forge_a_log_line_is_replaced(guarded: Served) -> None:
    for bad in ("a b", "x" * 65, 'a"b', "a;b"):
        answer = httpx.get(f"{guarded.url}/version", headers={"x-request-id": bad})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_nothing_of_a_picture_or_a_key_is_told_or_kept(guarded: Served, temporary: Path, collector: Collector) -> None:
    canaries = ["CANARY-GPS-52.5", "canary-name.jpg", "CANARYBASE64", "/canary-path", "canaryoption", *KEYS.values()]
    headers = bearer("search")
    whole = picture(description="CANARY-GPS-52.5")
    answers = [
        httpx.post(f"{guarded.url}/analyze", headers=headers, files={"images": (name, data)}, timeout=60)
        for name, data in (
            ("canary-name.jpg", whole),
            ("canary-name.jpg", whole[:9000]),
            ("canary-name.jpg", b"CANARY-GPS-52.5"),
        )
    ]
    answers += [
        httpx.post(f"{guarded.url}/classify", headers=headers, json={"images": ["CANARYBASE64!"]}),
        httpx.get(f"{guarded.url}/canary-path", headers=headers),
        httpx.get(f"{guarded.url}/models?key={KEYS['search']}"),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 415, 400, 404, 401]
    told = "".join(answer.text for answer in answers[1:]) + httpx.get(f"{guarded.url}/metrics").text
    told += "".join(guarded.lines) + collector.text.decode("latin-1")
    for canary in canaries:
        assert canary not in told, canary
    for file in temporary.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            for canary in canaries:
                assert canary.encode() not in data, file


def test_a_key_is_made_by_a_command_and_only_its_digest_is_kept() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "vision.api.keys", "search"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    key, entry = (line.rpartition(": ")[2] for line in run.stdout.splitlines())
    assert entry == f"search:{hashlib.sha256(key.encode()).hexdigest()}"
    wrong = subprocess.run([sys.executable, "-m", "vision.api.keys", "a:b"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "usage" in wrong.stderr


STARTS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "others let in": ({}, ["--host", "0.0.0.0"], "VISION_ALLOW_ANONYMOUS"),  # noqa: S104
    "a key for its digest": ({"VISION_API_KEYS": "search:secret"}, [], "VISION_API_KEYS"),
    "no room": ({"VISION_MAX_IN_FLIGHT": "0"}, [], "VISION_MAX_IN_FLIGHT=0"),
    "a typo": ({"VISION_KEYS": "x"}, [], "VISION_KEYS is no setting"),
    "no address": ({}, ["--host", "localhost"], "--host localhost is no address"),
    "no such port": ({}, ["--port", "70000"], "choose another --port"),
    "no certificate": ({}, ["--ssl-certfile", "README.md", "--ssl-keyfile", "none.pem"], "cannot be used"),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_that_cannot_go_well_ends_with_one_line(home: Path, name: str) -> None:
    settings, arguments, message = STARTS[name]
    run = start(home, ["--port", str(free_port()), *arguments], **settings)
    assert run.returncode != 0
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert "secret" not in run.stderr


def test_a_port_in_use_is_named(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = start(home, ["--port", str(port)])
    assert run.returncode != 0
    assert f"127.0.0.1:{port} cannot be used" in run.stderr


def test_a_second_server_leaves_the_metrics_of_the_first_alone(server: str, home: Path) -> None:
    assert "vision_model_info{" in httpx.get(f"{server}/metrics").text
    port = server.rpartition(":")[2]
    assert f"127.0.0.1:{port} cannot be used" in start(home, ["--port", port]).stderr
    assert "vision_model_info{" in httpx.get(f"{server}/metrics").text


def start(home: Path, arguments: list[str], **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
