"""A process takes connections whatever happens to one of them; tests/bento/test_workers.py has several processes."""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testkit.servers import until
from vision.bento import accept, workers
from vision.bento.accept import Acceptor


def listener() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    return listening


def connected(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname())


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_cannot_begin_is_neither_counted_nor_in_the_way() -> None:
    async def run() -> None:
        begun, counted = [], workers.ledger().own(workers.CONNECTIONS)  # other tests' connections are not all ended

        async def serve(connection: socket.socket) -> None:
            begun.append(connection)
            if len(begun) == 1:
                raise ssl.SSLError("no TLS")

        with listener() as listening:
            acceptor = Acceptor(listening, 8, serve)
            with connected(listening), connected(listening):
                await until(lambda: len(begun) == 2 and workers.ledger().own(workers.CONNECTIONS) == counted)
            acceptor.close()
        for one in begun:
            one.close()

    asyncio.run(run())


def test_a_connection_for_which_there_is_no_file_is_taken_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accept, "OUT_OF_FILES", 0.01)

    async def run() -> None:
        begun: list[socket.socket] = []

        async def serve(connection: socket.socket) -> None:
            begun.append(connection)

        with listener() as listening:
            acceptor = Acceptor(listening, 8, serve)
            with connected(listening):
                with no_more_files():
                    await until(lambda: "no connection can be taken" in caplog.text)
                assert not begun
                await until(lambda: begun)
            acceptor.close()
        begun[0].close()

    asyncio.run(run())


def test_a_socket_that_another_process_has_shut_keeps_nobody_busy(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        loop, tries = asyncio.get_running_loop(), 0

        async def serve(connection: socket.socket) -> None:
            connection.close()

        class Counted(Acceptor):
            def _take(self) -> None:
                nonlocal tries
                tries += 1
                super()._take()

        with listener() as listening:
            acceptor = Counted(listening, 8, serve)
            listening.shutdown(socket.SHUT_RDWR)
            await until(lambda: tries)
            for _ in range(100):  # turns of the loop, in each of which a readable socket would call
                await asyncio.sleep(0)
            acceptor.close()
        assert tries == 1
        assert loop.is_running()

    asyncio.run(run())
    assert not caplog.text
