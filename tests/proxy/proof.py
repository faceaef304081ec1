"""`make test-proxy`: two replicas behind the proxy that ships, killed, drained and rolled under load. Takes minutes.

It needs haproxy and openssl (Debian packages of these names).
"""

import hashlib
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from testkit.photographs import PHOTOS
from testkit.servers import OFFLINE, ROOT
from tests.conftest import home
from tests.proxy.farm import Farm, Load, Proxy, Replica, copy_home
from vision.core.errors import KINDS, Code

__all__ = ["home"]

SWAPPED = "swapped"
SAVE_AGAIN = """
import shutil, sys, tempfile
from pathlib import Path
from vision.bento import store
saved, copy = store.folder("efficientnet-lite0"), Path(tempfile.mkdtemp())
card = store.read_card(saved)
for name in card.sha256:
    shutil.copy(saved / name, copy)
store.save(copy, card, sys.argv[1])
shutil.rmtree(copy)
"""


@pytest.fixture(scope="module")
def farm(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Replicas with the settings of deploy/compose.yaml, each with two versions of the classifier in its store."""
    if shutil.which("haproxy") is None:
        pytest.fail("haproxy is not installed: apt-get install haproxy")
    key = secrets.token_urlsafe(32)
    shipped = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["vision-1"]["environment"]
    settings = {name: value for name, value in shipped.items() if name.startswith("VISION_")}
    settings["VISION_API_KEYS"] = f"proof:{hashlib.sha256(key.encode()).hexdigest()}"
    folder = tmp_path_factory.mktemp("farm")
    replicas = [Replica(copy_home(home, folder / f"replica{i}"), settings) for i in (1, 2)]
    for replica in replicas:
        save_again(replica.home)
    farm = Farm(replicas, Proxy(folder, replicas), key)
    with farm.proxy.running():
        try:
            yield farm
        finally:
            for replica in replicas:
                if replica.is_running():
                    replica.terminate()


@pytest.fixture
def whole(farm: Farm) -> Farm:
    farm.make_whole()
    return farm


def save_again(home: Path) -> None:
    """The classifier of the store once more, as another version: what an upgrade of a model looks like."""
    environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
    command = [sys.executable, "-c", SAVE_AGAIN, SWAPPED]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)


def tell(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Print a figure past pytest's capture."""
    with capsys.disabled():
        print(line)


def test_a_killed_replica_loses_no_accepted_request(whole: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    before = whole.proxy.resent()
    with Load(whole, clients=16).running() as load:
        load.wait_for(32)
        at_work = int(whole.proxy.servers()[0]["scur"])
        whole.replicas[0].kill()
        whole.wait_up([False, True], seconds=15)
        load.wait_for(32)
        whole.replicas[0].start()
        whole.wait_up([True, True])
        load.wait_for(32)
    resent = whole.proxy.resent() - before
    tell(
        capsys,
        f"killed: {len(load.statuses)} requests, {len(load.failures)} lost, {at_work} at the replica when it was "
        f"killed, {resent} sent again",
    )
    assert load.failures == []
    assert at_work > 0
    assert resent > 0


def test_rolling_to_another_model_and_back_fails_no_request(whole: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    before = whole.proxy.resent()
    with Load(whole, clients=8).running() as load:
        load.wait_for(16)
        upgraded = whole.roll(VISION_CLASSIFICATION_MODEL=f"efficientnet-lite0:{SWAPPED}")
        load.wait_for(16)
        at_top = len(load.models)
        load.wait_for(32)
        newest = set(load.models[at_top:])
        rolled_back = whole.roll(VISION_CLASSIFICATION_MODEL="efficientnet-lite0:26b376ca1587")
        load.wait_for(16)
        at_end = len(load.models)
        load.wait_for(32)
    tell(
        capsys,
        f"rolled: {len(load.statuses)} requests, {len(load.failures)} failed, "
        f"{whole.proxy.resent() - before} sent again; exit statuses {upgraded} and {rolled_back}",
    )
    assert load.failures == []
    assert upgraded == rolled_back == [0, 0]
    assert newest == {SWAPPED}
    assert set(load.models[at_end:]) == {"26b376ca1587"}


def test_capacity_of_two_replicas_to_one(whole: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure more than a test: how near to 2 it comes says whether processors or replicas are what is short."""

    def rate() -> float:
        with Load(whole, clients=16).running() as load:
            load.wait_for(32)
            start, answers = time.monotonic(), len(load.statuses)
            load.wait_for(200)
            rate = (len(load.statuses) - answers) / (time.monotonic() - start)
        assert load.failures == []
        return rate

    two = rate()
    assert whole.replicas[1].terminate() == 0
    whole.wait_up([True, False])
    one = rate()
    tell(
        capsys,
        f"capacity: {two:.1f} requests/s with two replicas, {one:.1f} with one, ratio {two / one:.2f}, "
        f"{os.cpu_count()} cores",
    )
    assert two / one > 0.7  # a second replica must not cost what it brings


def test_headers_and_bodies_have_deadlines(whole: Farm) -> None:
    head = "POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with slow_client(whole, head) as headers, slow_client(whole, f"{head}Content-Length: 1000\r\n\r\n") as body:
        start = time.monotonic()
        for connection, deadline in ((headers, 10), (body, 30)):
            answer = b""
            while not answer:
                with suppress(OSError):  # the proxy has closed the other one
                    headers.sendall(b"x")
                body.sendall(b"x")
                with suppress(TimeoutError):
                    answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408")
            assert time.monotonic() - start == pytest.approx(deadline, abs=3)


def slow_client(farm: Farm, beginning: str) -> ssl.SSLSocket:
    """A connection that has sent this much, and waits at most a second when it is read."""
    plain = socket.create_connection(("127.0.0.1", farm.proxy.port))
    connection = farm.proxy.trust.wrap_socket(plain, server_hostname="localhost")
    connection.sendall(beginning.encode())
    connection.settimeout(1)
    return connection


def test_what_the_proxy_says_itself_has_the_form_of_the_service(whole: Farm) -> None:
    with whole.client() as client:
        assert client.get("/metrics").json()["error"]["code"] == Code.NOT_FOUND
        photo = PHOTOS["bus"].read_bytes()
        assert client.post("/classify", files={"images": photo}, headers={"Authorization": ""}).status_code == 401
        given = client.get("/readyz", headers={"X-Request-ID": "mine"})
        assert given.headers["x-request-id"] == "mine"
        for replica in whole.replicas:
            replica.kill()
        whole.wait_up([False, False], seconds=15)
        answer = client.post("/classify", files={"images": photo})
    error = answer.json()["error"]
    assert answer.status_code == KINDS[Code(error["code"])].status == 503
    assert answer.headers["retry-after"] == "5"
    assert error["retryable"]
    assert error["request_id"] == answer.headers["x-request-id"]
