"""What must stay true while bad inputs come in: processes live, memory is bounded, answers are the documented ones."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import psutil

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, Served, served
from vision.core.errors import KINDS, Code

HANG_SECONDS = 10
OURS = {code for code, kind in KINDS.items() if kind.status >= 500}
"""Codes that say that the service failed, and not the input."""


def processes(url: str) -> list[psutil.Process]:
    """The supervisor of the server that answers at `url`, started by this process, and all below it."""
    port = url.rpartition(":")[2]
    for child in psutil.Process().children():
        if {"serve", port} <= set(child.cmdline()):
            return [child, *child.children(recursive=True)]
    raise LookupError(f"no child of this process serves on {port}")


def pids(url: str) -> set[int]:
    """Of the processes that live as long as the server; a decoder's is started when it is needed."""
    return {process.pid for process in processes(url) if "vision.core.decode_process" not in process.cmdline()}


class Growth:
    """Memory over the baseline in MB, the highest seen."""

    highest = 0.0


@contextmanager
def growth(url: str) -> Iterator[Growth]:
    """Watch the memory of a server's processes for as long as the block runs."""
    found, done = Growth(), threading.Event()

    def resident() -> float:
        return sum(process.memory_info().rss for process in processes(url)) / 1e6

    baseline = resident()

    def watch() -> None:
        while not done.wait(0.01):
            found.highest = max(found.highest, resident() - baseline)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


@cache
def document(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/docs.json").json())


def check_error(response: httpx.Response) -> str:
    """Assert that an answer is an error in the one form, with the status of its code; return the code."""
    assert response.headers["content-type"] == "application/json", response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"code", "message", "retryable", "request_id"}, error
    assert error["request_id"] == response.headers["x-request-id"]
    assert response.status_code == KINDS[Code(error["code"])].status, response.text[:500]
    assert error["code"] not in OURS, response.text[:500]
    return str(error["code"])


def check_answer(url: str, response: httpx.Response, pictures: int) -> list[str]:
    """Assert that an endpoint's answer is a documented one that blames the input; return each picture's outcome."""
    documented = document(url)["paths"][response.url.path]["post"]["responses"]
    assert str(response.status_code) in documented, f"undocumented {response.status_code}: {response.text[:500]}"
    schema = documented[str(response.status_code)]["content"]["application/json"]["schema"]
    body = response.json()
    jsonschema.validate(body, {**schema, "components": document(url)["components"]})
    if response.status_code != 200:
        check_error(response)
    if "results" not in body:
        return [body["error"]["code"]] * pictures
    assert len(body["results"]) == pictures
    outcomes = [result["error"]["code"] if "error" in result else "ok" for result in body["results"]]
    assert OURS.isdisjoint(outcomes), outcomes
    return outcomes


def check_known_picture(client: httpx.Client) -> None:
    """Assert that a photograph still gets its answer."""
    answer = client.post("/classify", files={"images": PHOTOS["bus"].read_bytes()})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["labels"][0]["label"] == "minibus"


@contextmanager
def fresh_server(**settings: str) -> Iterator[Served]:
    """A server with the starters, in a BENTOML_HOME of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": folder}
        command = [sys.executable, "-m", "train_and_save", "starter"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        with served(Path(folder), **settings) as running:
            yield running
