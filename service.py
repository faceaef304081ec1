"""The public Service: pictures in, content out. `bentoml serve` runs it; README.md shows how to call it."""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from time import perf_counter
from typing import Any, cast

import aiohttp
import bentoml
import numpy as np
from _bentoml_sdk import Service
from bentoml.exceptions import BentoMLException, NotFound
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from vision import http, images, store
from vision.errors import Code, VisionError
from vision.openapi import ENDPOINTS, DocumentedService
from vision.runners import CaptioningRunner, ClassificationRunner, DetectionRunner
from vision.schemas import (
    OPTIONS,
    TASKS,
    AnalyzeOptions,
    CaptionOptions,
    ClassifyOptions,
    DetectOptions,
    Failure,
    Options,
    Pixels,
    Task,
)
from vision.settings import SETTINGS

Pictures = list[bytes | VisionError] | VisionError

log = logging.getLogger("bentoml.vision")

# BentoML reports usage to its makers unless told not to; whoever wants that sets it to False.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


@bentoml.service(
    name="vision",
    service_class=DocumentedService,
    http={"host": "127.0.0.1"},
    traffic={"timeout": 300},
    runner_probe={"enabled": False},  # __is_ready__ asks the runners; BentoML's own probe can raise
)
class Vision:
    """Looks at pictures: which class, what a sentence would say, which objects and where."""

    classification = bentoml.depends(ClassificationRunner)
    captioning = bentoml.depends(CaptioningRunner)
    detection = bentoml.depends(DetectionRunner)

    def __init__(self) -> None:
        self._runners: dict[Task, Any] = {task: getattr(self, task) for task in TASKS}
        self._decoders = ThreadPoolExecutor(os.cpu_count())
        self._warm = False
        _cards()  # read now: what is saved later is not what the runners loaded

    @bentoml.api(input_spec=http.ClassifyRequest, output_spec=http.Results)
    async def classify(self, images: Pictures, **options: Any) -> JSONResponse:
        """Label each picture: the `top_k` best labels with their scores."""
        return await self._single(images, "classification", ClassifyOptions.model_construct(**options))

    @bentoml.api(input_spec=http.CaptionRequest, output_spec=http.Results)
    async def caption(self, images: Pictures, **options: Any) -> JSONResponse:
        """Say in a sentence what each picture shows."""
        return await self._single(images, "captioning", CaptionOptions.model_construct(**options))

    @bentoml.api(input_spec=http.DetectRequest, output_spec=http.Results)
    async def detect(self, images: Pictures, **options: Any) -> JSONResponse:
        """Find the objects in each picture: label, score and box."""
        return await self._single(images, "detection", DetectOptions.model_construct(**options))

    @bentoml.api(input_spec=http.AnalyzeRequest, output_spec=http.Results)
    async def analyze(self, images: Pictures, **options: Any) -> JSONResponse:
        """Run any of the three on each picture, side by side; the picture is decoded once."""
        if isinstance(images, VisionError):
            return http.refusal(images)
        tasks = AnalyzeOptions.model_construct(**options).by_task()
        return http.answer(await asyncio.gather(*(self._look(image, tasks) for image in images)))

    @bentoml.on_deployment
    @staticmethod
    def check_models() -> None:
        """Refuse to start with a missing or damaged model: run once, before any process is."""
        for task in TASKS:
            try:
                store.verify(store.folder(SETTINGS.tag(task)))
            except NotFound as error:
                way_out = "`python -m train_and_save starter` saves the starters."
                raise BentoMLException(f"The store has no {SETTINGS.tag(task)}. {way_out}") from error
            except ValueError as error:
                raise BentoMLException(str(error)) from error

    @bentoml.on_startup
    async def start_warming(self) -> None:
        self._warming = asyncio.create_task(self._warm_up())

    async def __is_ready__(self) -> bool:
        """Readiness: every runner was warmed up and answers now."""
        return self._warm and all(await asyncio.gather(*map(self._is_alive, TASKS)))

    async def _single(self, images: Pictures, task: Task, options: Options) -> JSONResponse:
        if isinstance(images, VisionError):
            return http.refusal(images)
        looks = await asyncio.gather(*(self._look(image, {task: options}) for image in images))
        return http.answer([look if "error" in look else {**look.pop(task), **look} for look in looks])

    async def _look(self, image: bytes | VisionError, tasks: dict[Task, Options]) -> dict[str, Any]:
        """Return what there is to say of a picture, or its error."""
        try:
            return await self._say(image, tasks)
        except VisionError as error:
            return Failure.of(error).model_dump(mode="json")
        except Exception:
            log.exception("a picture failed")
            return Failure.of(VisionError(Code.INTERNAL, "Something failed here; the log says what.")).model_dump()

    async def _say(self, image: bytes | VisionError, tasks: dict[Task, Options]) -> dict[str, Any]:
        """Return a picture's size, each task's result or error, and the milliseconds spent; its error if all failed."""
        start = perf_counter()
        pixels, (width, height) = await self._decode(image)
        decoded = perf_counter()
        ms = {"decode": _ms(start, decoded)}

        async def run(task: Task, options: Options) -> dict[str, Any]:
            item = {"pixels": pixels, "size": (width, height), "options": options.model_dump()}
            result = await self._predict(task, item)
            ms[task] = _ms(decoded, perf_counter())
            return result

        results = await asyncio.gather(*(run(task, options) for task, options in tasks.items()))
        if all("error" in result for result in results):
            return results[0]
        ms["total"] = _ms(start, perf_counter())
        return {"size": {"width": width, "height": height}, **dict(zip(tasks, results, strict=True)), "ms": ms}

    async def _decode(self, image: bytes | VisionError) -> tuple[Pixels, tuple[int, int]]:
        if isinstance(image, VisionError):
            raise image
        return await asyncio.get_running_loop().run_in_executor(self._decoders, _pixels, image)

    async def _predict(self, task: Task, item: dict[str, Any]) -> dict[str, Any]:
        """One picture through one runner, as a call of its own: BentoML's adaptive batching puts calls together."""
        try:
            [result] = await self._runners[task].to_async.predict([item])
            return dict(result)
        except (BentoMLException, aiohttp.ClientError, TimeoutError) as error:
            log.warning("%s: %s: %s", task, type(error).__name__, error)
            return Failure.of(
                VisionError(Code.UNAVAILABLE, f"{task} cannot answer now; try again in a moment.")
            ).model_dump()

    async def _is_alive(self, task: Task) -> bool:
        try:
            return bool(await self._runners[task].is_ready(2))
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _warm_up(self) -> None:
        """Send a grey picture through each runner until BentoML's batching has learned what a call costs.

        Its dispatcher trains on the first eleven calls; the last of them wait for a second and a third beside them.
        """

        async def warm(task: Task) -> None:
            options = OPTIONS[task]().model_dump()
            item = {"pixels": np.full((480, 640, 3), 127, np.uint8), "size": (640, 480), "options": options}
            while "error" in await self._predict(task, item):
                await asyncio.sleep(0.5)
            for side_by_side in (*[1] * 8, 2, 3, 4):
                await asyncio.gather(*(self._predict(task, item) for _ in range(side_by_side)))

        await asyncio.gather(*map(warm, TASKS))
        self._warm = True
        log.info("ready: %s", ", ".join(f"{card['name']}:{card['version']}" for card in _cards()))


def _pixels(data: bytes) -> tuple[Pixels, tuple[int, int]]:
    image = images.decode(data, max_bytes=SETTINGS.max_image_bytes, max_pixels=SETTINGS.max_pixels)
    return images.to_pixels(image), image.size


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 2)


@cache
def _cards() -> list[dict[str, Any]]:
    return [store.read_card(store.folder(SETTINGS.tag(task))).model_dump() for task in TASKS]


async def list_models(_: Request) -> JSONResponse:
    """GET /models: what is served, from each model's card."""
    return JSONResponse({"models": _cards()})


_service = cast(Service[Vision], Vision)  # what the decorator made of the class
_service.mount_asgi_app(Starlette(routes=[Route("/models", list_models)]), name="models")
_service.add_asgi_middleware(http.Door, endpoints=tuple(ENDPOINTS))
