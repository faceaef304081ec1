"""BentoML's ASGI applications: without what costs each request and tells nobody anything, and open to our own parts."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import attrs
import bentoml
from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk import Service
from bentoml import IODescriptor
from bentoml._internal.context import server_context
from bentoml._internal.service.openapi.specification import OpenAPISpecification
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from pydantic import BaseModel, create_model
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from vision.bento import hop, insides
from vision.core.queues import Result
from vision.core.schemas import Item
from vision.settings import SETTINGS

Schema = dict[str, Any]

TRACING: Any = (
    {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": {"protocol": "http", "endpoint": SETTINGS.otlp_endpoint}}
    if SETTINGS.otlp_endpoint
    else {}
)


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
                insides.need(inspect.signature(OpenTelemetryMiddleware.__init__).parameters, "exclude_spans")
                middleware.kwargs["exclude_spans"] = ["receive", "send"]
                trace.set_tracer_provider(middleware.kwargs["tracer_provider"])  # ours go the same way
            kept.append(middleware)
        return kept


# The public Service.


class PublicService(Service[Any]):
    """A BentoML Service with that application, whose edge and document are a subclass's."""

    def edge(self, app: Starlette) -> ASGIApp:
        """Return what stands before BentoML's application."""
        raise NotImplementedError

    def contract(self) -> tuple[Schema, Schema, Schema]:
        """Return the OpenAPI document's info, paths and schemas; BentoML's other paths stay beside them."""
        raise NotImplementedError

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        self.inject_config()
        factory = AppFactory(self, is_main=is_main)
        # BentoML's timeout goes on with the work and swallows exceptions; the door keeps time.
        insides.replace(factory, "timeout", None)
        return self.edge(factory())

    @property
    def openapi_spec(self) -> "Document":
        generated = super().openapi_spec
        info, paths, schemas = self.contract()
        return Document(
            openapi="3.1.0",
            info=generated.info,
            servers=generated.servers,
            tags=generated.tags,
            paths={path: item for path, item in generated.paths.items() if path not in paths},
            our_info=info,
            our_paths=paths,
            our_schemas=schemas,
        )


@attrs.frozen
class Document(OpenAPISpecification):
    """BentoML's own document with paths and schemas of ours in place of those it generates for the endpoints."""

    our_info: Schema = attrs.field(factory=dict)
    our_paths: Schema = attrs.field(factory=dict)
    our_schemas: Schema = attrs.field(factory=dict)

    def asdict(self) -> Schema:
        document = super().asdict()
        document["info"] = document.pop("our_info")
        paths, schemas = document.pop("our_paths"), document.pop("our_schemas")
        components = {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        return {**document, "paths": {**document["paths"], **paths}, "components": components}


class Body(IODescriptor):
    """A request as BentoML documents it, and its clients send it; what arrives is handed to the endpoint unread.

    BentoML's own parser fetches URLs for a client, spools pictures to disk and has no limits.
    """

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        return RawRequest(request)


@dataclass(frozen=True)
class RawRequest:
    """The arguments with which BentoML calls an endpoint: those that `model_fields` names."""

    request: Request
    model_fields: ClassVar = ("request",)


class ResultsBody(IODescriptor):
    """An answer as BentoML's clients see it; the OpenAPI document has each endpoint's exact form."""

    results: list[dict[str, Any]]


def api(name: str, summary: str, fields: type[BaseModel], answer: Callable[[Any, Request], Awaitable[Response]]) -> Any:
    """Return an attribute of the public Service's class: POST /<name>, whose body has `fields`."""

    async def post(self: Any, request: Request) -> Response:
        return await answer(self, request)

    post.__name__, post.__doc__ = name, summary
    body = create_model(f"{name.title()}Body", __base__=(Body, fields))
    return bentoml.api(input_spec=body, output_spec=ResultsBody)(post)


def bento_version() -> str:
    return server_context.bento_version


def serving() -> Any:
    """The instance of the public Service's class in this process."""
    return bentoml.get_current_service()


# A runner's Service.


class RunnerService(Service[Any]):
    """A BentoML Service with that application, whose models are called by frames."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        self.inject_config()
        factory = AppFactory(self, is_main=is_main)
        for dispatcher in factory.dispatchers.values():
            # BentoML would run one batch of a model at a time, however many threads the Service has.
            insides.replace(dispatcher._sema, "sema", self.config.get("threads", 1))

        async def predict(method: str, items: Sequence[Item[Any]]) -> Sequence[Result]:
            results: Sequence[Result] = await factory.batch_infer(method, (items,), {})
            return results

        def memory() -> Sequence[int]:
            taken: Sequence[int] = factory._service_instance.memory
            return taken

        hop.install(self.inner.task, predict, memory)
        app = factory()
        # Over HTTP they would take pickles.
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "name", None) not in self.apis]
        return app
