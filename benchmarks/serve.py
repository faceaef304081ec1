"""Servers to measure: how each is started, asked, weighed and stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil

from benchmarks.case import Answer, Case
from benchmarks.client import HEADERS
from benchmarks.weights import setting
from testkit.servers import OFFLINE, ROOT, free_port

START_SECONDS, STOP_SECONDS = 180, 20

ENDPOINTS = {"classification": "/classify", "captioning": "/caption", "detection": "/detect"}


@dataclass(frozen=True)
class Peer:
    """How its documentation starts it. The file that it runs is told apart from its tuned twin by BENCH_TUNED."""

    command: tuple[str, ...]
    tuned: tuple[str, ...] | None = None
    """The command when it is tuned, if another."""
    stop: signal.Signals = signal.SIGTERM
    rests: bool = True
    """Whether it does nothing while nobody asks."""


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


_GUNICORN = (_tool("gunicorn"), "--bind", "127.0.0.1:{port}", "benchmarks.servers.flask_server:app")

PEERS: Mapping[str, Peer] = {
    "flask": Peer((*_GUNICORN, "--workers", "2"), (*_GUNICORN, "--worker-class", "gthread", "--threads", "32")),
    "fastapi": Peer((_tool("uvicorn"), "benchmarks.servers.fastapi_server:app", "--port", "{port}")),
    # with a batch_timeout of 0, its default, its worker asks for pictures without pause
    "litserve": Peer((sys.executable, "-m", "benchmarks.servers.litserve_server"), stop=signal.SIGINT, rests=False),
    "ray": Peer((sys.executable, "-m", "benchmarks.servers.ray_server"), rests=False),
    "bentoml": Peer(
        (
            _tool("bentoml"),
            "serve",
            "benchmarks.servers.bentoml_server:Stock",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        )
    ),
}
OURS = Peer((_tool("bentoml"), "serve", "--host", "127.0.0.1", "--port", "{port}"))
NAMES = ["ours", *PEERS, *(f"{name}-tuned" for name in PEERS)]


@dataclass
class Server:
    """A server that runs. It answers pictures at `url`."""

    name: str
    url: str
    process: psutil.Popen
    peer: Peer

    @property
    def is_tuned(self) -> bool:
        return self.name == "ours" or self.name.endswith("-tuned")

    def ask(self, body: bytes) -> Answer:
        """Return what it says of one picture. Raises httpx.HTTPError."""
        response = httpx.post(self.url, content=body, headers=HEADERS, timeout=180).raise_for_status()
        answer = response.json()
        if isinstance(answer, dict) and "results" in answer:
            answer = answer["results"]
        return dict(answer[0] if isinstance(answer, list) else answer)

    def cpu_seconds(self) -> float:
        """What its processes have used so far, those that have ended included."""
        return sum(sum(process.cpu_times()[:4]) for process in self._tree())

    def pause(self) -> None:
        """Hold one that never rests, that it takes nothing from the others."""
        if not self.peer.rests:
            for process in self._tree():
                process.suspend()

    def resume(self) -> None:
        if not self.peer.rests:
            for process in self._tree():
                process.resume()

    def stop(self) -> None:
        """Ask it to end; what is left of its processes after that is killed."""
        if self.process.poll() is not None:
            return
        self.resume()
        tree = self._tree()
        self.process.send_signal(self.peer.stop)
        _, left = psutil.wait_procs(tree, timeout=STOP_SECONDS)
        for process in left:
            process.kill()
        self.process.wait()

    def _tree(self) -> list[psutil.Process]:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} has ended")
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def started(name: str, case: Case, home: Path, body: bytes, log: Path) -> Iterator[Server]:
    """Run a server from when it has answered a picture. `home` is the BENTOML_HOME that holds our models."""
    framework, _, tuned = name.partition("-")
    ours = name == "ours"
    peer = OURS if ours else PEERS[framework]
    port = free_port()
    command = peer.tuned if tuned and peer.tuned else peer.command
    with TemporaryDirectory() as own, log.open("w") as output:
        environment = {
            **os.environ,
            **OFFLINE,
            **case.environment(tuned=bool(tuned)),
            "BENTOML_HOME": str(home) if ours else own,
            "PORT": str(port),
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if ours:
            environment[setting(case.task)] = case.tag
        process = psutil.Popen(
            [part.format(port=port) for part in command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals to one group, as when its processes are held, reach no other server
        )
        server = Server(name, f"http://127.0.0.1:{port}{ENDPOINTS[case.task] if ours else '/predict'}", process, peer)
        try:
            _wait(server, body)
            yield server
        finally:
            server.stop()


def _wait(server: Server, body: bytes) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            server.ask(body)
        except httpx.HTTPError as error:
            broken = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (400, 422, 500)
            if broken or server.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{server.name} does not answer: {error}") from error
            time.sleep(0.5)
        else:
            return
