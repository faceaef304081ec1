"""The service as its users run it: real processes on a free port, each with a BENTOML_HOME of its own."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "BENTOML_DO_NOT_TRACK": "True"}

SERVE = (str(Path(sys.executable).with_name("bentoml")), "serve", "--port", "{port}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Served:
    """A running service: where it answers, its supervisor, and what it has logged."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]

    def workers(self) -> dict[str, psutil.Process]:
        """The process of each Service by name: vision, classification, captioning, detection."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        return {child.name(): child for child in started if "serve" in child.cmdline() and child.name() != "bentoml"}

    def stop(self) -> int:
        """Ask it to end as an operator would; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def served(home: Path, command: Sequence[str] = SERVE, **settings: str) -> Iterator[Served]:
    """Run the service on a free port with a BENTOML_HOME of its own, from when it says it is ready."""
    port = free_port()
    process = subprocess.Popen(
        [part.format(port=port) for part in command],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if '"ready: ' in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    running = Served(f"http://127.0.0.1:{port}", process, lines)
    try:
        assert ready.wait(timeout=300), "".join(lines)
        assert process.poll() is None, "".join(lines)
        yield running
    finally:
        running.stop()
        reader.join(60)
        assert not reader.is_alive(), "something that it started is still there, and holds its output"
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def serve(home: Path, command: Sequence[str] = SERVE, **settings: str) -> Iterator[str]:
    """The same, for tests that only need the address."""
    with served(home, command, **settings) as running:
        yield running.url


def another(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME with the same models."""
    place = tmp_path_factory.mktemp("home")
    shutil.copytree(home / "models", place / "models", copy_function=os.link)
    return place


def metric(running: Served, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, 0 where there are none yet."""
    families = text_string_to_metric_families(httpx.get(f"{running.url}/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what the service shows only when it is asked."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()
