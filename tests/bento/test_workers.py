"""Four public processes share the runners: what an operator may set holds over all of them, exactly."""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path

import httpx
import psutil
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import Served, another, frozen, metric, served, until
from vision.bento.workers import default

pytestmark = pytest.mark.served

WORKERS, IN_FLIGHT, OF_A_KEY, PER_MINUTE = 4, 8, 2, 20
KEYS = [f"key{number}" for number in range(6)]
PICTURE = {"images": PHOTOS["bus"].read_bytes()}


@pytest.fixture(scope="module")
def four(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {
        "VISION_WORKERS": str(WORKERS),
        "VISION_MAX_IN_FLIGHT": str(IN_FLIGHT),
        "VISION_KEY_IN_FLIGHT": str(OF_A_KEY),
        "VISION_KEY_REQUESTS_PER_MINUTE": str(PER_MINUTE),
        "VISION_API_KEYS": ",".join(f"{key}:{hashlib.sha256(key.encode()).hexdigest()}" for key in KEYS),
        "VISION_DRAIN_SECONDS": "8",
    }
    with served(another(home, tmp_path_factory), **settings) as running:
        yield running


def public(running: Served) -> list[psutil.Process]:
    children = psutil.Process(running.process.pid).children()
    living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if child.name() == "vision"]


@contextmanager
def only(one: psutil.Process, among: Sequence[psutil.Process]) -> Iterator[None]:
    """Let no other process take connections."""
    with ExitStack() as stack:
        for other in among:
            if other != one:
                stack.enter_context(frozen(other))
        yield


async def ask(running: Served, key: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(f"{running.url}/classify", files=PICTURE, headers={"authorization": f"Bearer {key}"})


def established(one: psutil.Process) -> int:
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in one.net_connections("tcp"))


def readies(running: Served) -> int:
    return sum('"ready: ' in line for line in running.lines)


def in_flight(running: Served) -> float:
    return metric(running, "vision_requests_in_flight")


async def asked_of(
    one: psutil.Process, running: Served, keys: Sequence[str], among: Sequence[psutil.Process] | None = None
) -> Sequence[asyncio.Future[httpx.Response]]:
    """Requests that this process has in work."""
    with only(one, public(running) if among is None else among):
        there = in_flight(running)
        requests = [asyncio.ensure_future(ask(running, key)) for key in keys]
        await until(lambda: in_flight(running) == there + len(keys))
    return requests


def test_it_is_ready_once_and_when_all_are(four: Served) -> None:
    assert len(public(four)) == WORKERS
    assert readies(four) == 1
    for one in public(four):
        with only(one, public(four)):
            assert httpx.get(f"{four.url}/readyz", timeout=60).status_code == 200


def test_connections_that_stay_are_shared(four: Served) -> None:
    """Whoever runs first would take all that wait: 40 of 40, or 38."""

    async def run() -> None:
        host, port = four.url.removeprefix("http://").split(":")
        for _ in range(3):
            connections = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(40)))
            await until(lambda: sum(map(established, public(four))) == 40)
            assert all(established(one) >= 5 for one in public(four))
            for _, writer in connections:
                writer.close()
            await until(lambda: not sum(map(established, public(four))))

    asyncio.run(run())


def test_requests_in_work_are_limited_over_all(four: Served) -> None:
    async def run() -> None:
        with frozen(four.workers()["classification"]):
            accepted: list[asyncio.Future[httpx.Response]] = []
            for one, key in zip(public(four), KEYS, strict=False):
                accepted += await asked_of(one, four, [key] * 2)
            for one in public(four):
                with only(one, public(four)):
                    refused = await ask(four, KEYS[4])
                    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert in_flight(four) == IN_FLIGHT
        assert {answer.status_code for answer in await asyncio.gather(*accepted)} == {200}
        assert in_flight(four) == 0

    before = metric(four, "vision_requests_total", route="/classify", status="200")
    asyncio.run(run())
    assert metric(four, "vision_requests_total", route="/classify", status="200") == before + IN_FLIGHT


def test_a_key_has_its_quotas_over_all(four: Served) -> None:
    async def run() -> None:
        first, second, third, _ = public(four)
        with frozen(four.workers()["classification"]):
            accepted = [*await asked_of(first, four, [KEYS[4]]), *await asked_of(second, four, [KEYS[4]])]
            with only(third, public(four)):
                refused = await ask(four, KEYS[4])
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
        assert {answer.status_code for answer in await asyncio.gather(*accepted)} == {200}

        start, statuses = time.monotonic(), []
        for count in range(PER_MINUTE + 4):
            with only(public(four)[count % WORKERS], public(four)):
                statuses.append((await ask(four, KEYS[5])).status_code)
        refilled = ceil((time.monotonic() - start) * PER_MINUTE / 60)
        assert PER_MINUTE <= statuses.count(200) <= PER_MINUTE + refilled
        assert set(statuses) <= {200, 429}

    asyncio.run(run())


def test_what_a_killed_process_had_in_work_counts_no_more(four: Served) -> None:
    async def run() -> None:
        killed, *others = public(four)
        other = others[0]
        with frozen(four.workers()["classification"]):
            lost = await asked_of(killed, four, [KEYS[0]] * 2)
            kept = [*await asked_of(other, four, [KEYS[1]] * 2), *await asked_of(other, four, [KEYS[2]] * 2)]
            killed.kill()
            await asyncio.gather(*lost, return_exceptions=True)
            assert in_flight(four) == 4
            # Its quota is free again. Not frozen is who takes its place: it may just be taking its row.
            kept += await asked_of(other, four, [KEYS[0]] * 2, others)
            kept += await asked_of(other, four, [KEYS[3]] * 2, others)
            assert in_flight(four) == IN_FLIGHT
        assert {answer.status_code for answer in await asyncio.gather(*kept)} == {200}
        await until(lambda: readies(four) == 2)  # another has taken its place
        assert len(public(four)) == WORKERS

    asyncio.run(run())


def test_the_end_loses_no_request_and_all_say_that_it_comes(four: Served) -> None:
    """The last test with this service."""

    async def run() -> None:
        accepted: list[asyncio.Future[httpx.Response]] = []
        with frozen(four.workers()["classification"]):
            for one, key in zip(public(four), KEYS, strict=False):
                accepted += await asked_of(one, four, [key])
            four.process.terminate()
            await until(lambda: "stopping" in httpx.get(f"{four.url}/readyz", timeout=60).text)
            for _ in range(2 * WORKERS):
                answer = await asyncio.to_thread(httpx.get, f"{four.url}/readyz", timeout=60)
                assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert {answer.status_code for answer in await asyncio.gather(*accepted)} == {200}

    asyncio.run(run())
    assert four.process.wait(60) == 0


@pytest.mark.parametrize(("cores", "gpu", "count"), [(1, True, 1), (4, True, 1), (16, True, 7), (16, False, 1)])
def test_by_default_there_are_several_where_a_gpu_waits_for_them(cores: int, gpu: bool, count: int) -> None:
    assert default(cores, gpu=gpu) == count
