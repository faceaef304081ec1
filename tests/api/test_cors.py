"""Pages of other origins: those that the operator names may call and read every answer, the others get nothing more."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.programs import need
from testkit.servers import another, serve

PAGE = "https://photos.example"
KEY = "key-of-a-page-3c1d"
ENTRY = f"page:{hashlib.sha256(KEY.encode()).hexdigest()}"
EXPOSED = {"x-request-id", "retry-after"}


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """A page's origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>a page</title>")
    shutil.copy(PHOTOS["bus"], folder / "bus.jpg")
    with pages(folder) as origin:
        yield origin


@pytest.fixture(scope="module")
def guarded(home: Path, tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[str]:
    """A service with keys that two origins may call."""
    settings = {
        "VISION_API_KEYS": ENTRY,
        "VISION_CORS_ORIGINS": f"{PAGE}, {origin}",
        "VISION_KEY_REQUESTS_PER_MINUTE": "8",
    }
    with serve(another(home, tmp_path_factory), **settings) as url:
        yield url


@pytest.fixture(scope="module")
def open_to_all(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service without keys that any page may call."""
    with serve(another(home, tmp_path_factory), VISION_CORS_ORIGINS="*") as url:
        yield url


def preflight(url: str, origin: str, method: str = "POST", headers: str = "") -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method}
    if headers:
        asked["access-control-request-headers"] = headers
    return httpx.options(url, headers=asked)


def words(header: str) -> set[str]:
    return {word.strip().lower() for word in header.split(",")}


@pytest.mark.parametrize("path", ["/classify", "/analyze", "/models"])
def test_a_preflight_is_answered_without_a_key(guarded: str, origin: str, path: str) -> None:
    for one in (PAGE, origin):
        answer = preflight(guarded + path, one, headers="authorization,content-type,x-request-id")
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == one
        assert words(answer.headers["access-control-allow-headers"]) >= {
            "authorization",
            "content-type",
            "x-request-id",
        }
        assert {"get", "post"} <= words(answer.headers["access-control-allow-methods"])
        assert "origin" in words(answer.headers["vary"])
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "other", ["https://other.example", f"{PAGE}.other.example", f"{PAGE}:8443", "null", "http:" + PAGE[6:]]
)
def test_other_origins_are_told_nothing(guarded: str, other: str) -> None:
    answer = preflight(f"{guarded}/classify", other)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    answer = httpx.post(f"{guarded}/classify", headers={"origin": other})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_key")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(("method", "headers"), [("DELETE", ""), ("POST", "x-other"), ("PATCH", "authorization")])
def test_what_no_page_needs_is_refused(guarded: str, method: str, headers: str) -> None:
    assert preflight(f"{guarded}/classify", PAGE, method, headers).status_code == 400


REFUSALS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "no key": ("POST", "/classify", {}, 401),
    "a wrong key": ("POST", "/classify", {"headers": {"authorization": "Bearer x"}}, 403),
    "an unknown path": ("GET", "/nothing", {}, 404),
    "a wrong method": ("GET", "/classify", {}, 405),
    "another type": ("POST", "/classify", {"headers": {"authorization": f"Bearer {KEY}", "content-type": "a/b"}}, 415),
    "too many bytes": (
        "POST",
        "/classify",
        {"headers": {"authorization": f"Bearer {KEY}", "content-type": "image/bmp"}, "content": b"B" * 64_000_001},
        413,
    ),
    "no picture": ("POST", "/classify", {"headers": {"authorization": f"Bearer {KEY}"}, "json": {}}, 400),
    "a broken picture": (
        "POST",
        "/classify",
        {"headers": {"authorization": f"Bearer {KEY}", "content-type": "image/png"}, "content": b"\x89PNG\r\n\x1a\n"},
        422,
    ),
    "readiness": ("GET", "/readyz", {}, 200),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_answer_may_be_read(guarded: str, name: str) -> None:
    method, path, given, status = REFUSALS[name]
    headers = {"origin": PAGE, **given.get("headers", {})}
    answer = httpx.request(method, guarded + path, **{**given, "headers": headers}, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert words(answer.headers["access-control-expose-headers"]) == EXPOSED
    assert answer.headers["x-request-id"]


def test_any_origin_may_call_where_the_operator_says_so(open_to_all: str) -> None:
    answer = preflight(f"{open_to_all}/caption", "https://anywhere.example", headers="content-type")
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    answer = httpx.get(f"{open_to_all}/caption", headers={"origin": "https://anywhere.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (405, "*")
    assert "access-control-allow-credentials" not in answer.headers


def test_by_default_no_page_may_call(client: httpx.Client) -> None:
    answer = preflight(f"{client.base_url}/classify", PAGE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    for one in (answer, client.get("/models", headers={"origin": PAGE})):
        assert not [name for name in one.headers if name.startswith("access-control-")]


CALL = """
async ([service, path, key, json]) => {
  const photo = await (await fetch("bus.jpg")).blob();
  const form = new FormData();
  form.append("images", photo, "bus.jpg");
  const text = new Uint8Array(await photo.arrayBuffer()).reduce((said, byte) => said + String.fromCharCode(byte), "");
  const headers = { "X-Request-ID": "from-a-page" };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (json) headers["Content-Type"] = "application/json";
  try {
    const body = json ? JSON.stringify({ images: [btoa(text)] }) : form;
    const answer = await fetch(service + path, { method: "POST", body, headers });
    const read = await answer.json();
    return {
      status: answer.status,
      said: read.error ? read.error.code : read.results[0].labels[0].label,
      id: answer.headers.get("X-Request-ID"),
      again: answer.headers.get("Retry-After"),
    };
  } catch (error) {
    return { status: 0, said: error.name, id: null, again: null };
  }
}
"""


@pytest.fixture(scope="module")
def tab(origin: str) -> Iterator[Any]:
    """A tab of a real browser that shows the page."""
    driver = pytest.importorskip("playwright.sync_api")
    need("chromium", "chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(f"{origin}/index.html")
        yield tab
        browser.close()


def test_a_page_in_chromium_calls_a_service_with_keys(tab: Any, guarded: str) -> None:
    def call(path: str, key: str, json: bool = False) -> dict[str, Any]:
        answer: dict[str, Any] = tab.evaluate(CALL, [guarded, path, key, json])
        return answer

    told = {"id": "from-a-page", "again": None}
    assert call("/classify", KEY) == {"status": 200, "said": "minibus", **told}
    assert call("/classify", KEY, json=True) == {"status": 200, "said": "minibus", **told}
    assert call("/classify", "") == {"status": 401, "said": "missing_key", **told}
    assert call("/classify", "wrong", json=True) == {"status": 403, "said": "unknown_key", **told}
    assert call("/nothing", KEY) == {"status": 404, "said": "not_found", **told}
    assert call("/classify?topk=1", KEY) == {"status": 400, "said": "invalid_option", **told}
    last = [call("/classify", KEY) for _ in range(12)][-1]
    assert last == {"status": 429, "said": "quota_exceeded", "id": "from-a-page", "again": "10"}


def test_a_page_in_chromium_calls_a_service_without_keys(tab: Any, open_to_all: str, server: str) -> None:
    told = {"id": "from-a-page", "again": None}
    for as_json in (False, True):
        answer = tab.evaluate(CALL, [open_to_all, "/classify", "", as_json])
        assert answer == {"status": 200, "said": "minibus", **told}
        closed = tab.evaluate(CALL, [server, "/classify", "", as_json])
        assert closed["status"] == 0, json.dumps(closed)
