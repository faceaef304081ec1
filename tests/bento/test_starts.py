"""A start where something is odd: one line with the way out; what a killed server left is swept."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from testkit.servers import OFFLINE, ROOT, another, free_port, served

SERVE = [str(Path(sys.executable).with_name("bentoml")), "serve", "--port"]
MAKE = [sys.executable, "-m", "train_and_save", "list"]


def one_line(command: list[str], **settings: str) -> str:
    environment = {**os.environ, **OFFLINE, **settings}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_a_long_temporary_folder_is_refused(home: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    line = one_line([*SERVE, str(free_port())], BENTOML_HOME=str(home), TMPDIR=str(long))
    assert "TMPDIR" in line
    assert "at most 60 characters" in line


def test_the_longest_temporary_folder_taken_serves(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    short = Path("/tmp")  # noqa: S108
    long = short / ("x" * (60 - len(str(short)) - 1))
    long.mkdir(exist_ok=True)
    with served(another(home, tmp_path_factory), TMPDIR=str(long)) as running:
        assert running.process.poll() is None
    long.rmdir()


def test_no_temporary_folder_at_all_is_refused(home: Path) -> None:
    """As where nothing can be written to: tempfile tries some names in each of its candidates, then gives up."""
    code = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]
from bentoml_cli.cli import cli
sys.argv[0] = "bentoml"
cli()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, "serve", "--port", str(free_port())]
    assert "TMPDIR" in one_line(command, BENTOML_HOME=str(home))


@pytest.mark.parametrize("place", ["/etc/passwd/x", "/proc/nowhere"])
@pytest.mark.served
def test_a_home_that_cannot_be_made_is_named(place: str) -> None:
    assert "BENTOML_HOME" in one_line(MAKE, BENTOML_HOME=place)
    environment = {name: value for name, value in os.environ.items() if name != "BENTOML_HOME"}
    run = subprocess.run(MAKE, cwd=ROOT, env={**environment, "HOME": place}, capture_output=True, text=True)
    assert run.returncode != 0
    assert "BENTOML_HOME" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_metrics_folders_of_killed_servers_are_swept_and_no_others(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = another(home, tmp_path_factory)
    with served(place) as killed:
        (left,) = place.glob("prometheus_multiproc_dir-*")
        killed.process.kill()
        killed.process.wait()
        (place / "prometheus_multiproc_dir-99999999").mkdir()
        with served(place) as first, served(place) as second:
            owners = {f"prometheus_multiproc_dir-{running.process.pid}" for running in (first, second)}
            assert {folder.name for folder in place.glob("prometheus_multiproc_dir-*")} == owners
    assert not left.exists()
    assert not list(place.glob("prometheus_multiproc_dir-*"))


def test_socket_folders_of_killed_supervisors_are_swept_and_no_others(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second supervisor that lives, another service that listens, and a start's new folder are left alone."""
    place = another(home, tmp_path_factory)
    with TemporaryDirectory(prefix="s-") as short, socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.setenv("TMPDIR", short)
        listening, starting = (Path(short, f"bentoml-uds-{name}") for name in ("listening", "starting"))
        listening.mkdir()
        starting.mkdir()
        listener.bind(str(listening / "runner.sock"))
        listener.listen()
        with served(place) as killed:
            left = set(Path(short).glob("bentoml-uds-*")) - {listening, starting}
            killed.process.kill()
            killed.process.wait()
            assert len(left) == 1
            with served(place) as first, served(place) as second:
                found = set(Path(short).glob("bentoml-uds-*"))
                assert len(found) == 4
                assert found > {listening, starting}
                assert not found & left
                assert all(httpx.get(f"{one.url}/readyz").status_code == 200 for one in (first, second))
        assert set(Path(short).glob("bentoml-uds-*")) == {listening, starting}


def test_another_product_s_variables_are_named_once_and_not_heeded(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in an environment made for Azure's client."""
    foreign = {"VISION_KEY": "a-secret-of-azure-5d0c", "VISION_ENDPOINT": "https://mine.cognitiveservices.azure.com"}
    with served(another(home, tmp_path_factory), **foreign) as running:
        assert httpx.post(f"{running.url}/classify", json={}).json()["error"]["code"] == "missing_image"
    [line] = [line for line in running.lines if "VISION_" in line]
    assert all(name in line for name in (*foreign, "VISION_API_KEYS"))
    assert not [line for line in running.lines if foreign["VISION_KEY"] in line]
    environment = {**os.environ, **OFFLINE, **foreign, "BENTOML_HOME": str(home)}
    run = subprocess.run(MAKE, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "VISION_KEY" not in run.stderr


@pytest.mark.parametrize("name", ["VISION_KEYS", "VISION_API_KEY", "VISION_ENDPOINTS"])
def test_a_misspelt_setting_still_ends_the_start(home: Path, name: str) -> None:
    assert name in one_line([*SERVE, str(free_port())], BENTOML_HOME=str(home), **{name: "x"})


@pytest.mark.parametrize(
    "origins", ["https://photos.example/", "photos.example", "https://*.example", "*, HTTPS://a.b"]
)
def test_an_origin_that_no_browser_sends_is_refused(home: Path, origins: str) -> None:
    line = one_line([*SERVE, str(free_port())], BENTOML_HOME=str(home), VISION_CORS_ORIGINS=origins)
    assert "VISION_CORS_ORIGINS" in line
