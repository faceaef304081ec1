"""HTTP/1.1 on the wire: uvicorn's protocol, with the limits that it lacks, and our error body for what is no HTTP."""

import asyncio
import json
from uuid import uuid4

import httptools
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vision.bento import insides, workers
from vision.core.errors import Code, VisionError
from vision.core.schemas import Failure
from vision.settings import SETTINGS

MAX_OVERHEAD = 1_000_000
"""Bytes of a request that are no body: head, chunk lines, trailers. httptools takes any number, copying each time."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays, as in nginx: who waits less than the client loses requests sent at that moment."""


def install() -> None:
    """Let the uvicorn that BentoML starts in this process speak this protocol."""
    insides.replace(auto, "AutoHTTPProtocol", Protocol)


class Protocol(HttpToolsProtocol):
    """Ends a connection whose head is too long, or does not arrive within the time that a body has.

    An offer to upgrade is ignored (RFC 9110, 7.8): every stock Java client makes one. httptools ends such a message at
    its head, so the head is parsed again without the offer, and the body after it.
    """

    overhead = 0
    head_is_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        workers.ledger().count(workers.CONNECTIONS, 1)
        self.timeout_keep_alive = KEEP_ALIVE_SECONDS
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        workers.ledger().count(workers.CONNECTIONS, -1)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.overhead += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
            return
        if self.overhead > MAX_OVERHEAD and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._offers_upgrade():
                    return  # what follows a CONNECT is no HTTP
                rest = rest[upgrade.args[0] :]
                self._parse_head_again()
            else:
                return

    def _parse_head_again(self) -> None:
        request = [self.parser.get_method(), self.url, b"HTTP/" + self.parser.get_http_version().encode()]
        headers = [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"\r\n".join([b" ".join(request), *headers, b"", b""]))

    def _offers_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        if self._offers_upgrade():
            return
        self._head_arrived()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_upgrade():
            return
        self.overhead = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or has a head without end; the door never sees it."""
        failure = Failure.of(VisionError(Code.MALFORMED_REQUEST, msg)).model_dump(mode="json")
        failure["error"]["request_id"] = request_id = uuid4().hex
        body = json.dumps(failure).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n"
            f"x-error-code: {Code.MALFORMED_REQUEST}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[400] + head.encode() + body)
        self.transport.close()

    def _should_upgrade_to_ws(self) -> bool:
        return False  # no WebSockets here: answered as the GET that it began as

    def _expect_head(self) -> None:
        if self.head_is_late is None:
            self.head_is_late = self.loop.call_later(SETTINGS.body_seconds, self.transport.close)

    def _head_arrived(self) -> None:
        if self.head_is_late is not None:
            self.head_is_late.cancel()
            self.head_is_late = None
