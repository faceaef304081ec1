"""Two real replicas behind the proxy that ships (deploy/haproxy.cfg), and clients that keep asking."""

import asyncio
import csv
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import psutil

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT, free_port

REQUESTS = [("/classify", "bus"), ("/detect", "cat"), ("/caption", "zidane"), ("/analyze", "rocket")]


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask again and again; what answers is another process, which sends no event."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


class Replica:
    """`bentoml serve` with a BENTOML_HOME and a port of its own."""

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self.home = home
        self.settings = settings
        self.port = free_port()
        self.log = home.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start it with the settings given to all replicas and these; `settings` pin models, for example."""
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(self.home), **self.settings, **settings}
        command = [str(Path(sys.executable).with_name("bentoml")), "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def terminate(self) -> int:
        """SIGTERM, as an orchestrator stops a container; return the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=120)

    def kill(self) -> None:
        """SIGKILL to each of its processes. All stand still first: none is replaced, none tells of another's end."""
        assert self.process is not None
        supervisor = psutil.Process(self.process.pid)
        processes = [supervisor, *supervisor.children(recursive=True)]
        for process in processes:
            process.suspend()
        for process in processes:
            process.kill()
        self.process.wait(timeout=10)

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Proxy:
    """haproxy with the file that ships; a second file adds the socket that tests ask for its numbers."""

    def __init__(self, folder: Path, replicas: list[Replica]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self._socket = folder / "haproxy.sock"
        self._environment = {
            **os.environ,
            "LISTEN": f"127.0.0.1:{self.port}",
            "CERTIFICATE": str(self._certificate()),
            **{f"REPLICA_{i}": f"127.0.0.1:{replica.port}" for i, replica in enumerate(replicas, 1)},
        }
        self.trust = ssl.create_default_context(cafile=folder / "certificate.pem")

    def _certificate(self) -> Path:
        """A self-signed certificate for localhost; as haproxy wants it, with its key in one file."""
        certificate, key, both = (self.folder / f"{name}.pem" for name in ("certificate", "key", "both"))
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        return both

    @contextmanager
    def running(self) -> Iterator[None]:
        extra = self.folder / "stats.cfg"
        extra.write_text(f"global\n    stats socket {self._socket}\n")
        command = ["haproxy", "-f", str(ROOT / "deploy" / "haproxy.cfg"), "-f", str(extra)]
        with (self.folder / "haproxy.log").open("wb") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        try:
            wait_until(self._socket.exists, 10, "haproxy listens")
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)

    def servers(self) -> list[dict[str, str]]:
        """haproxy's line for each replica: `status`, `scur` (requests at it now), `wretr`, `wredis`, ..."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._socket))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        lines = csv.DictReader(text.removeprefix("# ").splitlines())
        return [line for line in lines if line["pxname"] == "replicas" and line["svname"] in ("one", "two")]

    def up(self) -> list[bool]:
        """Which replicas get requests now."""
        return [line["status"].startswith("UP") for line in self.servers()]

    def resent(self) -> int:
        """How many times so far a request was sent again, to the other replica."""
        return sum(int(line["wretr"]) for line in self.servers())


@dataclass
class Farm:
    """Two replicas behind the proxy."""

    replicas: list[Replica]
    proxy: Proxy
    key: str

    def make_whole(self) -> None:
        """Both replicas serve the starters again, whatever a test did."""
        for replica in self.replicas:
            if not replica.is_running():
                replica.start()
        self.wait_up([True, True])

    def wait_up(self, up: list[bool], seconds: float = 240) -> None:
        """Wait until the proxy sends requests to exactly these."""

        def is_so() -> bool:
            for replica, expected in zip(self.replicas, up, strict=True):
                assert replica.is_running() or not expected, replica.log.read_text()
            return self.proxy.up() == up

        wait_until(is_so, seconds, f"replicas up: {up}")

    def roll(self, **settings: str) -> list[int]:
        """Replace one replica after the other, each drained and ready again before the next; their exit statuses."""
        statuses = []
        for replica in self.replicas:
            statuses.append(replica.terminate())
            self.wait_up([other is not replica for other in self.replicas])
            replica.start(**settings)
            self.wait_up([True, True])
        return statuses

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.proxy.url, verify=self.proxy.trust, timeout=120, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass
class Load:
    """Clients in a closed loop: each sends its next request when it has the answer to the last."""

    farm: Farm
    clients: int
    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    """The versions of the classifiers that answered, in the order of the answers."""
    seconds: float = 0

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Clients ask until the block ends; then each waits for the answer it is owed. The first answer opens it."""
        self._ending = threading.Event()
        self._answered = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        began = time.monotonic()
        thread.start()
        try:
            assert self._answered.wait(120), "no answer within 120 s"
            yield self
        finally:
            self._ending.set()
            thread.join()
            self.seconds = time.monotonic() - began

    def wait_for(self, answers: int) -> None:
        """Return after so many more answers."""
        goal = len(self.statuses) + answers
        wait_until(lambda: len(self.statuses) >= goal, 240, f"{answers} more answers")

    async def _run(self) -> None:
        photos = {photo: PHOTOS[photo].read_bytes() for _, photo in REQUESTS}
        limits = httpx.Limits(max_connections=self.clients)
        async with httpx.AsyncClient(
            base_url=self.farm.proxy.url,
            verify=self.farm.proxy.trust,
            timeout=120,
            limits=limits,
            headers=self.farm.headers,
        ) as client:

            async def ask(number: int) -> None:
                for endpoint, photo in cycle(REQUESTS[number % 4 :] + REQUESTS[: number % 4]):
                    if self._ending.is_set():
                        return
                    await self._send(client, endpoint, photos[photo])

            await asyncio.gather(*map(ask, range(self.clients)))

    async def _send(self, client: httpx.AsyncClient, endpoint: str, photo: bytes) -> None:
        try:
            answer = await client.post(endpoint, files={"images": photo})
        except httpx.HTTPError as error:
            self.statuses.append(0)
            self.failures.append(f"{endpoint}: {error!r}")
        else:
            self._note(endpoint, answer)
        self._answered.set()

    def _note(self, endpoint: str, answer: httpx.Response) -> None:
        self.statuses.append(answer.status_code)
        if answer.status_code != 200 or '"error"' in answer.text:
            self.failures.append(f"{endpoint}: {answer.status_code} {answer.text[:300]}")
        elif endpoint == "/classify":
            [result] = answer.json()["results"]
            self.models.append(result["model"]["version"])


def copy_home(home: Path, copy: Path) -> Path:
    """A BENTOML_HOME of its own for a replica: metrics are files there, wiped when a server starts."""
    shutil.copytree(home, copy)
    return copy
