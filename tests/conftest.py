"""What every test stands on: the starters in a store, a running service, photographs."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

from testkit.photographs import SHARED
from testkit.servers import OFFLINE, ROOT, Served, served


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "home" in item.fixturenames:
            item.add_marker("served")


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ours speak: where BentoML sets up logging in this process, it disables those that are there."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.startswith("vision"):
            monkeypatch.setattr(logger, "disabled", False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A BENTOML_HOME with the starters in its model store, saved once by the command that users call.

    Each of xdist's processes has a copy: servers of two must not share one.
    """
    own = tmp_path_factory.getbasetemp()
    saved = (own if worker_id == "master" else own.parent) / "starters"
    with FileLock(saved.with_suffix(".lock")):
        if not saved.exists():
            environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(saved)}
            subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
    home = tmp_path_factory.mktemp("bentoml")
    shutil.copytree(saved, home, dirs_exist_ok=True)
    return home


@pytest.fixture(scope="session")
def running(home: Path) -> Iterator[Served]:
    """A served product, shared by all tests that do not harm it."""
    with served(home) as running:
        yield running


@pytest.fixture(scope="session")
def server(running: Served) -> str:
    """Its address."""
    return running.url


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photographs and corpora to measure with; tests that need it are left out where it is not."""
    if not SHARED.is_dir():
        pytest.skip("the measuring folder ../shared is not here")
    return SHARED
