"""The connection to a runner: calls arrive as they were sent, answers go to who asked, and a loss is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import uvloop
from pydantic import BaseModel
from starlette.responses import PlainTextResponse

from testkit.servers import Served
from vision.bento.hop import Caller, RunnerProtocol
from vision.core.errors import Code, VisionError
from vision.core.queues import Result
from vision.core.schemas import Item
from vision.core.task import Task
from vision.tasks import TASKS
from vision.tasks.classification.spec import ClassifyOptions


class Told(BaseModel):
    pixels: list[Any]
    size: tuple[int, int]
    top_k: int


ECHO = Task("echo", "echo", "", ClassifyOptions, Told, "", NotImplemented, NotImplemented)


class Echo:
    """A runner that tells what it was sent, once it may; pictures that begin with 13 end it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.seen: list[int] = []

    async def predict(self, method: str, items: Sequence[Item[Any]]) -> list[Result]:
        assert method == "predict_00"
        firsts = [int(item.pixels.flat[0]) for item in items]
        self.seen += firsts
        await self.go.wait()
        if 13 in firsts:
            raise RuntimeError("an unlucky picture")
        return [
            VisionError(Code.INFERENCE_FAILED, "black") if first == 0 else told(item)
            for first, item in zip(firsts, items, strict=True)
        ]


@asynccontextmanager
async def runner(echo: Echo, place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    """Serve `echo` as BentoML's uvicorn serves a runner."""
    path = place / "runner.sock"
    monkeypatch.setenv("BENTOML_RUNNER_MAP", json.dumps({"echo": f"file://{path}"}))
    http: Any = partial(RunnerProtocol, ECHO, echo.predict, lambda: [7, 8])
    config = uvicorn.Config(PlainTextResponse("HTTP"), uds=str(path), http=http, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    caller = Caller(ECHO)
    try:
        yield caller
    finally:
        caller.close()
        server.should_exit = True
        await serving


def item(first: int, shape: tuple[int, ...] = (2, 3, 3)) -> Item[Any]:
    pixels = np.random.default_rng(first).integers(0, 256, shape, np.uint8)
    pixels.flat[0] = first
    return Item(pixels, (30, 20), ClassifyOptions(top_k=first + 1))


def told(item: Item[Any]) -> Told:
    return Told(pixels=item.pixels.tolist(), size=item.size, top_k=item.options.top_k)


def predict(caller: Caller, *items: Item[Any]) -> Coroutine[Any, Any, list[Result]]:
    return caller.predict("predict_00", items)


def test_pixels_of_any_shape_and_layout_arrive_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(1), item(2, (1, 1, 3)), item(3, (200, 400, 3))]  # more than a socket holds
    items.append(replace(item(4), pixels=items[2].pixels[::2, ::-1]))

    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            for _ in range(2):
                assert await predict(caller, *items) == list(map(told, items))
            assert await predict(caller) == []
            assert await caller.memory() == [7, 8]

    asyncio.run(run())


def test_an_item_that_failed_is_an_error_among_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            first, failed, last = await predict(caller, item(1), item(0), item(2))
        assert [first, last] == [told(item(1)), told(item(2))]
        assert isinstance(failed, VisionError)
        assert (failed.code, failed.message) == (Code.INFERENCE_FAILED, "black")

    asyncio.run(run())


def test_calls_at_a_time_get_their_own_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [[item(10 * number), item(10 * number + 1)] for number in range(1, 20)]

    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            answers = await asyncio.gather(*(predict(caller, *call) for call in calls))
        assert answers == [list(map(told, call)) for call in calls]

    asyncio.run(run())


def test_a_call_that_is_given_up_leaves_no_answer_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        echo = Echo()
        async with runner(echo, tmp_path, monkeypatch) as caller:
            assert await predict(caller, item(1)) == [told(item(1))]
            echo.go.clear()
            given_up = asyncio.ensure_future(predict(caller, item(2)))
            while echo.seen[-1] != 2:
                await asyncio.sleep(0.01)
            given_up.cancel()
            await asyncio.wait({given_up})
            echo.go.set()
            assert await predict(caller, item(3)) == [told(item(3))]

    uvloop.run(run())  # a runner's; asyncio's lets what is closed be written to
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_runner_that_fails_is_unavailable_and_is_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with runner(Echo(), tmp_path, monkeypatch) as caller:
            assert await predict(caller, item(1)) == [told(item(1))]
            with pytest.raises(VisionError) as failed:
                await predict(caller, item(13))
            assert failed.value.code == Code.UNAVAILABLE
            assert await predict(caller, item(2)) == [told(item(2))]

    asyncio.run(run())


def test_a_runner_that_is_away_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_RUNNER_MAP", json.dumps({"echo": f"file://{tmp_path}/none.sock"}))
    with pytest.raises(VisionError) as away:
        asyncio.run(predict(Caller(ECHO), item(1)))
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
    held = running.workers()["vision"].net_connections("unix")
    listening = sorted({str(one.laddr) for one in held if str(one.laddr).endswith(".sock")})
    with httpx.Client(transport=httpx.HTTPTransport(uds=listening[list(TASKS).index(task)])) as http:
        assert http.get("http://runner/livez").status_code == 200
        answer = http.post(
            "http://runner/predict_00", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"}
        )
    assert answer.status_code == 404
