"""BentoML's ASGI application, without what costs each request and tells nobody anything."""

from typing import Any

from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk import Service
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from vision.bento import hop
from vision.settings import SETTINGS


class AppFactory(ServiceAppFactory):
    @property
    def middlewares(self) -> list[Middleware]:
        """BentoML's, where tracing is one span a request, and only if traces go anywhere.

        A body arrives in many messages; a span for each was half of the event loop's work.
        """
        kept: list[Middleware] = []
        for middleware in super().middlewares:
            kind: Any = middleware.cls
            if kind is OpenTelemetryMiddleware:
                if not SETTINGS.otlp_endpoint:
                    continue
                middleware.kwargs["exclude_spans"] = ["receive", "send"]
                trace.set_tracer_provider(middleware.kwargs["tracer_provider"])  # ours go the same way
            kept.append(middleware)
        return kept


class RunnerService(Service[Any]):
    """A BentoML Service with that application, whose `predict` is called by frames."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        self.inject_config()
        factory = AppFactory(self, is_main=is_main)
        for dispatcher in factory.dispatchers.values():
            # BentoML would run one batch at a time, however many threads the Service has.
            dispatcher._sema.sema = self.config.get("threads", 1)
        hop.install(lambda items: factory.batch_infer("predict", (items,), {}))
        app = factory()
        # Over HTTP it would take pickles.
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "name", None) != "predict"]
        return app
