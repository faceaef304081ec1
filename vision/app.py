"""BentoML's ASGI application with one trace span a request, not one for each message of its body.

A picture's pixels reach a runner in some forty messages, and their spans, though none is kept where nothing traces,
were half of the work of the process's only event loop.
"""

from typing import Any

from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk import Service
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.middleware import Middleware
from starlette.types import ASGIApp


class AppFactory(ServiceAppFactory):
    @property
    def middlewares(self) -> list[Middleware]:
        found: list[Middleware] = super().middlewares
        for middleware in found:
            kind: Any = middleware.cls
            if kind is OpenTelemetryMiddleware:
                middleware.kwargs["exclude_spans"] = ["receive", "send"]
        return found


class RunnerService(Service[Any]):
    """A BentoML Service with that application."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        self.inject_config()
        return AppFactory(self, is_main=is_main)()
