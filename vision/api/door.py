"""The door: what every request passes before BentoML sees it, and every answer on its way out."""

import asyncio
import logging
import re
from contextlib import suppress
from time import perf_counter
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision import metrics
from vision.api import page
from vision.api.answers import ERROR_CODE, refusal
from vision.api.endpoints import ENDPOINTS
from vision.api.facts import FACTS, Facts
from vision.api.keys import Keys
from vision.api.requests import check_media_type
from vision.bento import shutdown, workers
from vision.bento.workers import BUFFERED, IN_FLIGHT
from vision.core.errors import RETRY_AFTER, Code, VisionError
from vision.settings import SETTINGS

QUIET = ("/livez", "/readyz", "/metrics")
PAGES = (*QUIET, "/healthz", "/models", "/version", "/docs.json", "/schema.json", *page.FILES)
BEHIND_KEYS = (*ENDPOINTS, "/models")

MAX_BUFFERED = 16 * SETTINGS.max_request_bytes
"""Bytes of bodies held at once; more would let slow clients fill the memory."""

LINGER_SECONDS = 5
"""How long a refused body is read and thrown away, as nginx does: closed at once, the answer would be lost."""

CLIENT_GONE = 499  # nginx's number, in logs and metrics only

log = logging.getLogger("bentoml.vision")


class Door:
    """ASGI middleware around all of BentoML: request id, keys, limits, deadlines, the one error body, log and metrics.

    It stands outside BentoML's own middlewares, whose metrics would take every unknown path for a label.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.ledger = workers.ledger()
        self.keys = Keys(SETTINGS.api_keys, SETTINGS.key_requests_per_minute, SETTINGS.key_in_flight, self.ledger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(self, _tidied(scope), receive, send)
        FACTS.set(visit.facts)
        try:
            visit.admit()
            await visit.work()
        except VisionError as error:
            await visit.refuse(error)
        except Exception:
            log.exception("request failed")
            await visit.refuse(VisionError(Code.INTERNAL, "Something failed here; the log says what."))
        finally:
            visit.leave()

    def check_room(self) -> None:
        """Raises VisionError: overloaded, when no request more can be taken into work."""
        with self.ledger.exclusive():
            if self.ledger.is_full(IN_FLIGHT, SETTINGS.max_in_flight):
                raise _overloaded()

    def enter(self) -> None:
        """Count a request in work. Raises VisionError: overloaded."""
        if not self.ledger.add(IN_FLIGHT, 1, SETTINGS.max_in_flight):
            raise _overloaded()
        metrics.IN_FLIGHT.set(self.ledger.own(IN_FLIGHT))

    def forget_the_dead(self) -> None:
        """Count no more what processes had in work that have ended."""
        with self.ledger.exclusive():
            self.ledger.sweep()

    def leave(self) -> None:
        self.ledger.count(IN_FLIGHT, -1)
        metrics.IN_FLIGHT.set(self.ledger.own(IN_FLIGHT))


class Visit:
    """One request from its headers to its answer."""

    def __init__(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        self.door, self.scope = door, scope
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        given = self.headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid4().hex
        self.facts = Facts(request_id, caller=(scope.get("client") or ("",))[0])
        self.start = perf_counter()
        self.route = _route(scope["path"])
        self.key: str | None = None
        self.entered = self.counted = self.started = self.replaced = False
        self.refused: str | None = None  # the error code, where no work began
        self.received = self.status = 0
        self.complete = asyncio.Event()  # the body has arrived

    # --- in ------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Check what can be checked before the body is read. Raises VisionError."""
        path, method = self.scope["path"], self.scope["method"]
        if self.route is None:
            raise VisionError(Code.NOT_FOUND, "There is no such path; /docs.json lists what there is.")
        if method not in _methods(self.route):
            raise VisionError(Code.METHOD_NOT_ALLOWED, f"{path} does not take {method}.")
        if self.route in BEHIND_KEYS:
            self.key = self.door.keys.name(self.headers.get("authorization"))
            self.facts.caller = self.key or self.facts.caller
        if self.route not in ENDPOINTS:
            if self.route == "/metrics":
                self.door.forget_the_dead()
            self.complete.set()
            return
        if self.is_encoded():
            raise VisionError(Code.UNSUPPORTED_MEDIA_TYPE, "Send the body as it is, without Content-Encoding.")
        check_media_type(self.headers)
        length = self.headers.get("content-length", "")
        if length.isdecimal():
            _check_length(int(length))
        self.door.keys.enter(self.key)
        self.entered = True
        self.door.check_room()

    def is_encoded(self) -> bool:
        codings = ",".join(self.headers.getlist("content-encoding")).lower().split(",")
        return not {coding.strip() for coding in codings} <= {"", "identity"}

    async def work(self) -> None:
        """Let BentoML answer; stop it when the client leaves or the time is up."""
        answer = asyncio.ensure_future(self.door.app(self.scope, self.receive, self.send))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped = answer.cancel()
            watch.cancel()
        await asyncio.wait({answer, watch})
        if not stopped:
            answer.result()
        elif not self.started:
            self.status = CLIENT_GONE
            watch.result()

    async def receive(self) -> Message:
        """Hand on a piece of the body. Raises VisionError: request_too_large, body_timeout, overloaded, malformed."""
        if self.complete.is_set():
            await asyncio.Event().wait()  # a client that leaves is `_watch`'s to see
        try:
            async with asyncio.timeout(self.start + SETTINGS.body_seconds - perf_counter()):
                message = await self._receive()
        except TimeoutError as error:
            raise VisionError(
                Code.BODY_TIMEOUT, f"The body did not arrive within {SETTINGS.body_seconds:g} s."
            ) from error
        if message["type"] == "http.disconnect":
            raise VisionError(Code.MALFORMED_REQUEST, "The body ended early.")
        size = len(message.get("body", b""))
        _check_length(self.received + size)
        if not self.door.ledger.add(BUFFERED, size, MAX_BUFFERED):
            raise VisionError(Code.OVERLOADED, "Too many bodies are on their way in; try again in a moment.")
        self.received += size
        if not message.get("more_body", False):
            self.door.enter()
            self.counted = True
            self.complete.set()
        return message

    async def _watch(self) -> None:
        """Return when the client has left. Raises VisionError: deadline_exceeded."""
        await self.complete.wait()
        try:
            async with asyncio.timeout(SETTINGS.request_seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError as error:
            raise VisionError(
                Code.DEADLINE_EXCEEDED,
                f"No answer within {SETTINGS.request_seconds:g} s; send fewer pictures, or try again later.",
            ) from error

    # --- out -----------------------------------------------------------------------------------------

    async def refuse(self, error: VisionError) -> None:
        if not self.started:
            await refusal(error)(self.scope, self._receive, self.send)

    async def send(self, message: Message) -> None:
        """Hand on the answer, with the headers that all have; an error in BentoML's own form becomes ours."""
        if self.replaced:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            if message["status"] >= 400 and ERROR_CODE not in headers:
                await self.refuse(_translated(message["status"]))
                self.replaced = True
                return
            self._complete_headers(message["status"], headers)
            self.started, self.status = True, message["status"]
            self.refused = headers.get(ERROR_CODE) if not self.counted else None
        elif not message.get("more_body", False) and not self.complete.is_set():
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body"}
        await self._send(message)

    def _complete_headers(self, status: int, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.facts.request_id
        if status in RETRY_AFTER:
            headers["retry-after"] = str(RETRY_AFTER[status])
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status == 415 and self.is_encoded():
            headers["accept-encoding"] = "identity"  # tells it from a wrong media type (RFC 9110, 12.5.3)
        if status == 405 and self.route:
            headers["allow"] = ", ".join(_methods(self.route))
        if shutdown.is_draining() or not self.complete.is_set():
            headers["connection"] = "close"

    async def _linger(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass

    def leave(self) -> None:
        """Give back what the request held, and tell of it."""
        self.door.ledger.count(BUFFERED, -self.received)
        if self.counted:
            self.door.leave()
        if self.entered:
            self.door.keys.leave(self.key)
        if self.refused:
            metrics.REFUSALS.labels(self.refused).inc()
        seconds = perf_counter() - self.start
        route = self.route or "unknown"
        metrics.REQUESTS.labels(route, str(self.status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        if route in QUIET:
            return
        ms = round(seconds * 1000, 1)
        told = {name: value for name, value in vars(self.facts).items() if name != "caller"}
        log.info(
            "%s %s in %s ms, request %s",
            route,
            self.status,
            ms,
            self.facts.request_id,
            extra={**told, "route": route, "status": self.status, "ms": ms, "key": self.key},
        )


def _overloaded() -> VisionError:
    # Each a new one: an exception that is raised again keeps the frames of every time before, and their bodies.
    return VisionError(Code.OVERLOADED, "Too many requests are in work; try again in a moment.")


def _route(path: str) -> str | None:
    return path if path in ENDPOINTS or path in PAGES else None


def _tidied(scope: Scope) -> Scope:
    """Take superfluous slashes from an endpoint's path: `/detect/`, `//detect`.

    Not from a page's: a proxy may keep /metrics inside, and know it by this one path.
    """
    path = "/" + "/".join(filter(None, scope["path"].split("/")))
    return {**scope, "path": path, "raw_path": path.encode()} if path in ENDPOINTS else scope


def _methods(route: str) -> tuple[str, ...]:
    return ("POST",) if route in ENDPOINTS else ("GET", "HEAD")


def _check_length(length: int) -> None:
    if length > SETTINGS.max_request_bytes:
        raise VisionError(
            Code.REQUEST_TOO_LARGE,
            f"The request is larger than {SETTINGS.max_request_bytes:,} bytes; send fewer pictures.",
        )


def _translated(status: int) -> VisionError:
    if status == 404:
        return VisionError(Code.NOT_FOUND, "There is no such path; /docs.json lists what there is.")
    if status == 503:
        return VisionError(Code.UNAVAILABLE, "Not ready; try again in a moment.")
    if status < 500:
        return VisionError(Code.MALFORMED_REQUEST, "The request cannot be read.")
    return VisionError(Code.INTERNAL, "Something failed here; the log says what.")
