"""What the service changes or uses of BentoML's, circus's and uvicorn's insides is still there, under its name.

A method that was renamed would leave ours uncalled, without a word: each is named here.
"""

import asyncio
import atexit
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from _bentoml_impl.server import serving
from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_impl.worker import service
from _bentoml_sdk import Service
from bentoml import IODescriptor
from bentoml._internal import log as bentoml_log
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.context import server_context
from bentoml._internal.service.openapi.specification import OpenAPISpecification
from bentoml._internal.utils import circus
from bentoml.models import BentoModel
from circus.process import Process
from circus.watcher import Watcher
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vision import metrics
from vision.api import wire
from vision.bento import accept, app, forked, hop, insides, runners, supervisor

OURS: list[tuple[type, type, str]] = [
    # ours, what it stands on, and what of it ours overrides or calls
    (app.AppFactory, ServiceAppFactory, "middlewares batch_infer"),
    (app.PublicService, Service, "to_asgi openapi_spec inject_config"),
    (app.RunnerService, Service, "to_asgi inject_config"),
    (app.Document, OpenAPISpecification, "asdict"),
    (app.Body, IODescriptor, "from_http_request"),
    (runners.StoredModel, BentoModel, "to_info"),
    (supervisor.Supervisor, circus.Arbiter, "start stop"),
    (accept.Server, uvicorn.Server, "startup"),
    (forked.Forked, Process, "spawn format_args _get_sockets_fds _null_streams"),
    (
        wire.Protocol,
        HttpToolsProtocol,
        "connection_made connection_lost data_received on_message_begin on_headers_complete on_body "
        "on_message_complete send_400_response _should_upgrade_to_ws _unsupported_upgrade_warning",
    ),
    (hop.RunnerProtocol, HttpToolsProtocol, "_should_upgrade _get_upgrade handle_websocket_upgrade"),
]


@pytest.mark.parametrize(("ours", "theirs", "names"), OURS, ids=lambda value: getattr(value, "__name__", None))
def test_what_ours_stands_on_has_what_ours_relies_on(ours: type, theirs: type, names: str) -> None:
    assert theirs in ours.__mro__
    assert [name for name in names.split() if not hasattr(theirs, name)] == []


def test_a_factory_holds_its_timeout_its_dispatchers_and_their_locks() -> None:
    runner = runners.RUNNERS["classification"]
    runner.inject_config()
    factory = ServiceAppFactory(runner)
    assert hasattr(factory, "timeout")
    assert hasattr(factory, "_service_instance")
    assert list(factory.dispatchers) == ["predict_00"]
    assert all(isinstance(dispatcher._sema.sema, int) for dispatcher in factory.dispatchers.values())


def test_uvicorn_is_given_its_protocol_by_that_name() -> None:
    assert hasattr(auto, "AutoHTTPProtocol")
    used: Any = inspect.getsource(__import__("uvicorn.config", fromlist=["config"]))
    assert '"uvicorn.protocols.http.auto:AutoHTTPProtocol"' in used


def test_tracing_and_logging_are_set_where_ours_sets_them() -> None:
    assert "exclude_spans" in inspect.signature(OpenTelemetryMiddleware.__init__).parameters
    assert bentoml_log.SERVER_LOGGING_CONFIG["formatters"]["traced"]
    assert "filters" in bentoml_log.SERVER_LOGGING_CONFIG["handlers"]["tracehandler"]
    assert BentoMLContainer.prometheus_multiproc_dir.get()
    assert isinstance(server_context.bento_version, str)


def test_circus_has_what_the_supervisor_looks_at() -> None:
    source = inspect.getsource(circus.Arbiter) + inspect.getsource(
        inspect.getmodule(circus.Arbiter.__mro__[1]) or circus
    )
    for name in ("exit_stack", "_stopping", "_exclusive_running_command", "pubsub_endpoint"):
        assert name in source


def test_an_inside_that_moved_is_told_loudly() -> None:
    owner = SimpleNamespace(here=1)
    insides.replace(owner, "here", 2)
    assert owner.here == 2
    with pytest.raises(AttributeError):
        insides.replace(owner, "gone", 2)
    with pytest.raises(AttributeError, match="there is no gone any more"):
        insides.need(["here"], "gone")


def test_a_worker_can_be_a_copy_of_the_supervisor() -> None:
    assert isinstance(inspect.getattr_static(Watcher, "_process_class"), property | type)
    source = inspect.getsource(Process)
    assert [
        name for name in ("close_child_stdin", "env", "working_dir", "_worker") if f"self.{name}" not in source
    ] == []
    assert f'"{service.__name__}"' in inspect.getsource(serving)
    assert {"service_name", "fd"} <= {option.name for option in service.main.params}
    for owner, name in ((atexit, "_clear"), (atexit, "_run_exitfuncs"), (asyncio, "_set_running_loop")):
        assert callable(getattr(owner, name))
    assert all(callable(metric._metric_init) for metric in (metrics.IN_FLIGHT, metrics.DECODE_SECONDS))
