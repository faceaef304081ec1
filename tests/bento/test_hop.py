"""The connection to a runner: calls arrive as they were sent, answers go to who asked, and a loss is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from testkit.servers import Served
from vision.bento.hop import Caller, RunnerProtocol
from vision.core.errors import Code, VisionError
from vision.tasks import TASKS


class Echo:
    """A runner that tells what it was sent, once it may; pictures that begin with 13 end it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.seen: list[int] = []

    async def predict(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        firsts = [int(item["pixels"].flat[0]) for item in items]
        self.seen += firsts
        await self.go.wait()
        if 13 in firsts:
            raise RuntimeError("an unlucky picture")
        return [{**item, "pixels": item["pixels"].tolist()} for item in items]


@asynccontextmanager
async def runner(echo: Echo, place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    """Serve `echo` as BentoML's uvicorn serves a runner."""
    path = place / "runner.sock"
    monkeypatch.setenv("BENTOML_RUNNER_MAP", json.dumps({"classification": f"file://{path}"}))
    http: Any = partial(RunnerProtocol, echo.predict)
    config = uvicorn.Config(PlainTextResponse("HTTP"), uds=str(path), http=http, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    caller = Caller("classification")
    try:
        yield caller
    finally:
        caller.close()
        server.should_exit = True
        await serving


def item(first: int, shape: tuple[int, ...] = (2, 3, 3)) -> dict[str, Any]:
    pixels = np.random.default_rng(first).integers(0, 256, shape, np.uint8)
    pixels.flat[0] = first
    return {"pixels": pixels, "size": (30, 20), "options": {"top_k": 5, "labels": ["dög"]}}


def told(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "pixels": one["pixels"].tolist(), "size": [30, 20]} for one in items]


def test_pixels_of_any_shape_and_layout_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(1), item(2, (1, 1, 3)), item(3, (700, 900, 3))]  # more than a socket holds
    items.append({**item(4), "pixels": items[2]["pixels"][::2, ::-1]})

    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            for _ in range(2):
                assert await caller.predict(items) == told(items)
            assert await caller.predict([]) == []

    asyncio.run(run())


def test_calls_at_a_time_get_their_own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [[item(10 * number), item(10 * number + 1)] for number in range(20)]

    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            answers = await asyncio.gather(*map(caller.predict, calls))
        assert answers == list(map(told, calls))

    asyncio.run(run())


def test_a_call_that_is_given_up_leaves_no_answer_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        echo = Echo()
        async with runner(echo, tmp_path, monkeypatch) as caller:
            assert await caller.predict([item(1)]) == told([item(1)])
            echo.go.clear()
            given_up = asyncio.ensure_future(caller.predict([item(2)]))
            while echo.seen[-1] != 2:
                await asyncio.sleep(0.01)
            given_up.cancel()
            await asyncio.wait({given_up})
            echo.go.set()
            assert await caller.predict([item(3)]) == told([item(3)])

    asyncio.run(run())


def test_a_runner_that_fails_is_unavailable_and_is_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            assert await caller.predict([item(1)]) == told([item(1)])
            with pytest.raises(VisionError) as failed:
                await caller.predict([item(13)])
            assert failed.value.code == Code.UNAVAILABLE
            assert await caller.predict([item(2)]) == told([item(2)])

    asyncio.run(run())


def test_a_runner_that_is_away_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_RUNNER_MAP", json.dumps({"classification": f"file://{tmp_path}/none.sock"}))
    with pytest.raises(VisionError) as away:
        asyncio.run(Caller("classification").predict([item(1)]))
    assert away.value.code == Code.UNAVAILABLE


def test_http_is_spoken_as_before_on_the_same_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with (
            runner(Echo(), tmp_path, monkeypatch),
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(tmp_path / "runner.sock"))) as http,
        ):
            assert (await http.get("http://runner/")).text == "HTTP"

    asyncio.run(run())


@pytest.mark.parametrize("task", TASKS)
def test_a_runner_takes_no_pickles(running: Served, task: str) -> None:
    runners = json.loads(running.workers()["vision"].environ()["BENTOML_RUNNER_MAP"])
    with httpx.Client(transport=httpx.HTTPTransport(uds=runners[task].removeprefix("file://"))) as http:
        assert http.get("http://runner/livez").status_code == 200
        answer = http.post(
            "http://runner/predict", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"}
        )
    assert answer.status_code == 404
