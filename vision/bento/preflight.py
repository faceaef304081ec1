"""Before any process is started: refuse, in one line with the way out, what cannot go well."""

import atexit
import errno
import fcntl
import ipaddress
import logging
import os
import resource
import shutil
import socket
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException

from vision.bento import store, supervisor
from vision.bento.served import rules
from vision.core import device
from vision.settings import FOREIGN, PREFIX, SETTINGS
from vision.tasks import TASKS

log = logging.getLogger("bentoml.vision")

MAX_TEMPORARY = 60
"""Characters of the temporary folder's path: a socket's has at most 107, and BentoML puts 43 behind the folder's."""


SOCKETS = "bentoml-uds-"
"""How BentoML names the temporary folder of its runners' sockets."""


def own_metrics_folder() -> None:
    """Give this server's metrics a folder of its own: BentoML wipes the shared one, where another server may write."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # in the supervisor, which hands it to the workers
        provider = BentoMLContainer.prometheus_multiproc_dir
        provider.set(f"{provider.get()}-{os.getpid()}")
        atexit.register(shutil.rmtree, provider.get(), ignore_errors=True)


def _sweep_metrics_folders() -> None:
    """Remove those of servers that were killed. Each server holds a lock on its own, until it ends."""
    own = Path(BentoMLContainer.prometheus_multiproc_dir.get())
    supervisor.hold(own)
    for folder in own.parent.glob(f"{own.name.rpartition('-')[0]}-*"):
        if not Path("/proc", folder.name.rpartition("-")[2]).exists():  # that one may be starting
            _remove_unless_held(folder)


def _sweep_socket_folders() -> None:
    """Remove this user's of supervisors that were killed. Ours hold a lock, another service's listen."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        with suppress(FileNotFoundError):  # its own supervisor, or another start, was faster
            if folder.lstat().st_uid != os.getuid():
                continue
            files = list(folder.iterdir())
            if files and not any(map(_is_listened_to, files)):  # an empty one may be of a start
                _remove_unless_held(folder)


def _is_listened_to(file: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(file)) != errno.ECONNREFUSED


def _remove_unless_held(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # of a server that lives, maybe in another container
    else:
        shutil.rmtree(folder)
    finally:
        os.close(file)


def check() -> None:
    """Check the options of `bentoml serve` and the models. Raises BentoMLException, which ends the start."""
    context = click.get_current_context(silent=True)
    options: dict[str, Any] = context.params if context else {}
    if options.get("reload"):
        raise BentoMLException("--reload is not supported: end the service and start it again.")
    _check_address(options.get("host") or "127.0.0.1", options.get("port") or 3000)
    _check_certificate(options)
    _check_temporary_folder()
    _check_models()
    if foreign := [name for name in FOREIGN if name in os.environ]:
        log.warning("%s: ignored, another product's; the keys of callers go into VISION_API_KEYS.", ", ".join(foreign))
    _sweep_metrics_folders()
    _sweep_socket_folders()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand slow clients are a thousand files


def _check_address(host: str, port: int) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise BentoMLException(f"--host {host} is no address: say 127.0.0.1 or 0.0.0.0.") from error
    if not address.is_loopback and not SETTINGS.api_keys and not SETTINGS.allow_anonymous:
        raise BentoMLException(
            f"Serving on {host} lets others in: set VISION_API_KEYS (`python -m vision.api.keys NAME` makes a key), "
            "or VISION_ALLOW_ANONYMOUS=true when something else keeps them out."
        )
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise BentoMLException(f"{host}:{port} cannot be used ({error}): choose another --port.") from error


def _check_certificate(options: dict[str, Any]) -> None:
    certificate = options.get("ssl_certfile")
    if not certificate:
        return
    key = options.get("ssl_keyfile") or certificate
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key, options.get("ssl_keyfile_password") or "")
    except OSError as error:  # ssl.SSLError is one
        raise BentoMLException(
            f"--ssl-certfile {certificate} and --ssl-keyfile {key} cannot be used ({error.strerror or error}): "
            "name a readable PEM certificate and its key."
        ) from error


def _check_temporary_folder() -> None:
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise BentoMLException("No temporary folder can be written to: name one in TMPDIR.") from error
    if len(os.fsencode(folder)) > MAX_TEMPORARY:
        raise BentoMLException(
            f"TMPDIR={folder} is too long for the paths of sockets: name one of at most {MAX_TEMPORARY} characters."
        )


def _check_models() -> None:
    for task in TASKS:
        if device.wanted(SETTINGS.device, task).startswith("cuda") and not device.has_torch():
            raise BentoMLException(f"{PREFIX}DEVICE={SETTINGS.device}: {device.TORCH_BY}.")
        setting = f"{PREFIX}{task.upper()}_MODEL"
        seen = set[str]()
        for tag in SETTINGS.models(task):
            try:
                card = store.verify(store.folder(tag))
            except ValueError as error:
                raise BentoMLException(str(error)) from error
            version = f"{card.name}:{card.version}"
            if card.task != task:
                raise BentoMLException(f"{setting}: {version} is a model for {card.task}, not for {task}.")
            if version in seen:
                raise BentoMLException(f"{setting}: {version} stands there twice.")
            seen.add(version)
    try:
        rules()
    except ValueError as error:
        raise BentoMLException(str(error)) from error
