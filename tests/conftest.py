"""Real servers, real photographs: what every test stands on."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import matplotlib
import pytest
import skimage
from PIL import Image
from ultralytics.utils import ASSETS

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "BENTOML_DO_NOT_TRACK": "True"}

SERVE = (str(Path(sys.executable).with_name("bentoml")), "serve", "--port", "{port}")

PHOTOS: dict[str, Path] = {
    "bus": ASSETS / "bus.jpg",
    "zidane": ASSETS / "zidane.jpg",
    "hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    **{
        name: Path(skimage.__file__).parent / "data" / file
        for name, file in {
            "coffee": "coffee.png",
            "camera": "camera.png",
            "cat": "chelsea.png",
            "motorcycle": "motorcycle_left.png",
            "rocket": "rocket.jpg",
        }.items()
    },
}
"""Photographs that test dependencies ship."""


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serve(home: Path, command: Sequence[str] = SERVE, **settings: str) -> Iterator[str]:
    """Run the service on a free port with a BENTOML_HOME of its own; yield its address once it says it is ready."""
    port = free_port()
    process = subprocess.Popen(
        [part.format(port=port) for part in command],
        cwd=ROOT,
        env={**os.environ, **OFFLINE, "BENTOML_HOME": str(home), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if '"ready: ' in line:
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(timeout=300), "".join(lines)
        assert process.poll() is None, "".join(lines)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME with the starters in its model store, saved by the command that users call."""
    home = tmp_path_factory.mktemp("bentoml")
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
    return home


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The address of a served product, shared by all tests that do not harm it."""
    with serve(home) as url:
        yield url


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
