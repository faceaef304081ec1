"""Who may command the service: nobody; how it ends: always, in time, and as a whole."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from testkit.servers import OFFLINE, ROOT, Served, another, free_port, served, until

REQUEST_SECONDS = 5
GRACE_SECONDS = REQUEST_SECONDS + 10
NOBODY = 65534


@contextmanager
def started(home: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service from its first moment on, which nothing waits for."""
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", "--port", str(port)]
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def as_nobody(act: Callable[[], str]) -> str:
    """Return what `act` returns in a process of another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, act().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        return told.read()


def processes(running: Served) -> list[psutil.Process]:
    supervisor = psutil.Process(running.process.pid)
    return [supervisor, *supervisor.children()]


def test_the_service_listens_on_its_public_port_only(running: Served) -> None:
    listening = {
        connection.laddr.port
        for process in processes(running)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert listening == {int(running.url.rpartition(":")[2])}


def test_another_user_cannot_connect_to_a_socket_of_the_service(running: Served) -> None:
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    sockets = [one for process in processes(running) for one in process.net_connections("unix")]
    paths = {str(one.laddr) for one in sockets if one.laddr}
    assert sum(path.endswith(".sock") for path in paths) == 3  # the runners'

    def connect() -> str:
        opened = []
        for path in paths:
            with socket.socket(socket.AF_UNIX) as one, suppress(PermissionError):
                one.connect(path.replace("@", "\0", 1))
                opened.append(path)
        return str(opened)

    assert as_nobody(connect) == "[]"


def stop_a_runner(running: Served) -> None:
    running.workers()["captioning"].suspend()


def kill_a_runner(running: Served) -> None:
    running.workers()["captioning"].kill()


def replace_a_runner(running: Served) -> None:
    before = set(processes(running))
    running.workers()["captioning"].kill()
    asyncio.run(until(lambda: set(processes(running)) - before))


def kill_the_public_process(running: Served) -> None:
    running.workers()["vision"].kill()


def stop_the_public_process(running: Served) -> None:
    running.workers()["vision"].suspend()


def hang_up(running: Served) -> None:
    running.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize(
    "happens",
    [
        hang_up,
        stop_a_runner,
        kill_a_runner,
        replace_a_runner,
        kill_the_public_process,
        stop_the_public_process,
    ],
)
def test_sigterm_ends_the_service_in_time_whatever_has_happened(
    home: Path, tmp_path_factory: pytest.TempPathFactory, happens: Callable[[Served], None]
) -> None:
    with served(another(home, tmp_path_factory), VISION_REQUEST_SECONDS=str(REQUEST_SECONDS)) as running:
        _, *workers = processes(running)
        happens(running)
        workers += processes(running)[1:]
        running.process.terminate()
        assert running.process.wait(GRACE_SECONDS) == 0
        _, alive = psutil.wait_procs(workers, 1)
        assert not alive


def test_a_terminal_that_closes_ends_the_service_and_with_nohup_it_goes_on(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served(another(home, tmp_path_factory)) as running:
        running.process.send_signal(signal.SIGHUP)
        assert running.process.wait(GRACE_SECONDS) == 0
    command = ("nohup", str(Path(sys.executable).with_name("bentoml")), "serve", "--port", "{port}")
    with served(another(home, tmp_path_factory), command) as running:
        before = processes(running)
        running.process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert processes(running) == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_service_that_starts_can_be_ended(home: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    with started(another(home, tmp_path_factory), free_port()) as process:
        supervisor = psutil.Process(process.pid)
        asyncio.run(until(supervisor.children))
        workers = supervisor.children()
        process.send_signal(signal.Signals[name])
        assert process.wait(GRACE_SECONDS) == 0
        _, alive = psutil.wait_procs(workers, 1)
        assert not alive


def test_nothing_outlives_a_supervisor_that_was_killed_and_it_can_be_started_again(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = another(home, tmp_path_factory)
    with served(place) as running:
        _, *workers = processes(running)
        assert len(workers) == 4
        running.process.kill()
        _, alive = psutil.wait_procs(workers, 10)
        assert not alive
    port = int(running.url.rpartition(":")[2])
    with started(place, port) as process:
        asyncio.run(until(lambda: answers(port)))
        assert process.poll() is None


def test_workers_that_start_leave_with_their_supervisor(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with started(another(home, tmp_path_factory), free_port()) as process:
        supervisor = psutil.Process(process.pid)
        asyncio.run(until(supervisor.children))
        workers = supervisor.children()
        process.kill()
        _, alive = psutil.wait_procs(workers, 10)
        assert not alive


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False
