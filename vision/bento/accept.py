"""Which public process takes a connection: one that has the fewest.

All of them share a listening socket. The system wakes them all, and the first to run may take whatever waits: then one
has all the connections that a client or a load balancer keeps, and the others idle.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn

from vision.bento import insides, workers

PATIENCE = 0.002
"""Seconds for which a connection is left to a process that has fewer: that one may be busy, or hang."""

OUT_OF_FILES = 1.0
"""Seconds until the next try where the system has no more file descriptors, as in asyncio."""

log = logging.getLogger("bentoml.vision")


def install() -> None:
    """Let the uvicorn that BentoML starts in this process share connections so."""
    insides.replace(uvicorn, "Server", Server)


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        acceptors: Any = [Acceptor(one, self.config.backlog, self._speak_with) for one in sockets or ()]
        self.servers = acceptors  # of which uvicorn asks what these can do

    async def _speak_with(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvloop would, asyncio not for what is given
        http: Any = self.config.http_protocol_class
        protocol = partial(http, self.config, self.server_state, self.lifespan.state, loop)
        await loop.connect_accepted_socket(protocol, connection, ssl=self.config.ssl)


class Acceptor:
    """Takes a listening socket's connections, and has each of them served."""

    def __init__(
        self, listener: socket.socket, backlog: int, serve: Callable[[socket.socket], Awaitable[None]]
    ) -> None:
        self._listener, self._serve = listener, serve
        self._loop, self._ledger = asyncio.get_running_loop(), workers.ledger()
        self._pause: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        listener.listen(backlog)
        self._listen()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._pause:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """As asyncio's Server does; uvicorn waits for the connections itself."""

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._come)

    def _stop_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, then)

    def _come(self) -> None:
        """A connection waits, or another process has just taken it."""
        if self._ledger.own(workers.CONNECTIONS) > self._ledger.least(workers.CONNECTIONS):
            self._stop_for(PATIENCE, self._wait_no_more)
        else:
            self._take()

    def _wait_no_more(self) -> None:
        self._listen()
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # shut, as the service ends
                log.warning("no connection can be taken: %s", error)
            self._stop_for(OUT_OF_FILES, self._listen)
            return
        self._ledger.count(workers.CONNECTIONS, 1)
        task = self._loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._serve(connection)
        except OSError as error:  # no TLS, or gone
            log.debug("a connection could not begin: %s", error)
            connection.close()
        finally:
            self._ledger.count(workers.CONNECTIONS, -1)  # from here on its protocol counts it
