"""The public Service: pictures in, content out. `bentoml serve` runs it; README.md shows how to call it."""

import asyncio
import gc
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from time import perf_counter
from typing import Any

import aiohttp
import bentoml
import numpy as np
from bentoml._internal.context import server_context
from opentelemetry import trace
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

import vision
from vision import gpu_metrics, http, images, logs, metrics, models, preflight, shutdown, store, wire
from vision.app import AppFactory
from vision.coalesce import Coalescer
from vision.door import Door
from vision.errors import Code, VisionError
from vision.hop import Caller
from vision.models.pixels import Shrink
from vision.openapi import DocumentedService
from vision.runners import BESIDE, MAX_BATCH_SIZE, TRACING, CaptioningRunner, ClassificationRunner, DetectionRunner
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

LIBRARIES = ("bentoml", "openvino", "torch", "transformers", "ultralytics", "pillow")

log = logging.getLogger("bentoml.vision")
tracer = trace.get_tracer("vision")
logs.configure()
preflight.own_metrics_folder()

# BentoML reports usage to its makers unless told not to; whoever wants that sets it to False.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


class VisionService(DocumentedService):
    """A BentoML Service that stands behind our door."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        wire.install()
        self.inject_config()
        factory = AppFactory(self, is_main=is_main)
        factory.timeout = None  # its timeout goes on with the work and swallows exceptions; the door keeps time
        app = factory()
        app.router.routes[:0] = [Route(path, page) for path, page in PAGES.items()]
        return Door(app)


@bentoml.service(
    name="vision",
    service_class=VisionService,
    http={"host": "127.0.0.1"},
    logging={"access": {"enabled": False}},  # the door writes a line for each request
    tracing=TRACING,
    # "none" is no distro that BentoML knows: for one it would install compilers into the image.
    image=bentoml.images.Image(base_image="python:3.11-slim-bookworm", python_version="3.11", distro="none"),
    # Else the allocator gives each picture's memory back and gets it again page by page: half the time of a decode.
    envs=[
        {"name": "MALLOC_MMAP_THRESHOLD_", "value": str(32 << 20)},
        {"name": "MALLOC_TRIM_THRESHOLD_", "value": str(128 << 20)},
    ],
    runner_probe={"enabled": False},  # /readyz asks the runners; BentoML's own probe can raise
)
class Vision:
    """Looks at pictures: which class, what a sentence would say, which objects and where."""

    classification = bentoml.depends(ClassificationRunner)
    captioning = bentoml.depends(CaptioningRunner)
    detection = bentoml.depends(DetectionRunner)

    def __init__(self) -> None:
        logs.configure()
        self._runners: dict[Task, Any] = {task: getattr(self, task) for task in TASKS}
        self._callers = {task: Caller(task) for task in TASKS}
        self._queues = {
            task: Coalescer(caller.predict, MAX_BATCH_SIZE, metrics.QUEUE_IMAGES.labels(task).set, BESIDE[task])
            for task, caller in self._callers.items()
        }
        self._decoders = ThreadPoolExecutor(os.cpu_count())
        # A call's cost grows with its pixels, and a model needs few of a photograph's.
        self._shrink: dict[Task, Shrink] = {
            task: models.load_shrink(store.folder(SETTINGS.tag(task)), task) for task in TASKS
        }
        self._warm = False
        for card in _cards():  # read now: what is saved later is not what the runners loaded
            metrics.MODEL_INFO.labels(card["task"], card["name"], card["version"]).set(1)

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
    def check() -> None:
        """Run once, before any process is started."""
        shutdown.keep_sockets_until_the_end()
        os.environ.pop("BENTOML_CONTAINERIZED", None)  # with it, BentoML would not replace a runner that died
        preflight.check()

    @bentoml.on_startup
    async def start_warming(self) -> None:
        self._alive = shutdown.drain_first(SETTINGS.drain_seconds)
        self._warming = asyncio.create_task(self._warm_up())
        self._watching = asyncio.create_task(gpu_metrics.watch())

    @bentoml.on_shutdown
    async def leave_runners(self) -> None:
        for caller in self._callers.values():
            caller.close()

    async def readiness(self) -> dict[Task, str]:
        """Say of each runner whether it is ready, starting, unreachable, or stopping with the service."""
        if shutdown.DRAINING.is_set():
            return dict.fromkeys(TASKS, "stopping")
        alive = await asyncio.gather(*map(self._is_alive, TASKS))
        return {
            task: "unreachable" if not one else "ready" if self._warm else "starting"
            for task, one in zip(TASKS, alive, strict=True)
        }

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
            for task in tasks:
                metrics.IMAGES.labels(task, error.code).inc()
            return Failure.of(error).model_dump(mode="json")
        except Exception:
            log.exception("a picture failed")
            return Failure.of(VisionError(Code.INTERNAL, "Something failed here; the log says what.")).model_dump()

    async def _say(self, image: bytes | VisionError, tasks: dict[Task, Options]) -> dict[str, Any]:
        """Return a picture's size, each task's result or error, and the milliseconds spent; its error if all failed."""
        start = perf_counter()
        shown, (width, height) = await self._decode(image, tasks)
        decoded = perf_counter()
        metrics.DECODE_SECONDS.observe(decoded - start)
        ms = {"decode": _ms(start, decoded)}

        async def run(task: Task, options: Options) -> dict[str, Any]:
            item = {"pixels": shown[task], "size": (width, height), "options": options.model_dump()}
            with tracer.start_as_current_span(task):
                result = await self._queues[task].predict(item, http.FACTS.get().images)
            ms[task] = _ms(decoded, perf_counter())
            _tell(task, result)
            return result

        results = await asyncio.gather(*(run(task, options) for task, options in tasks.items()))
        if all("error" in result for result in results):
            return results[0]
        ms["total"] = _ms(start, perf_counter())
        return {"size": {"width": width, "height": height}, **dict(zip(tasks, results, strict=True)), "ms": ms}

    async def _decode(
        self, image: bytes | VisionError, tasks: Iterable[Task]
    ) -> tuple[dict[Task, Pixels], tuple[int, int]]:
        """Return the pixels that each task's model needs of a picture, and the picture's size."""
        if isinstance(image, VisionError):
            raise image
        shrink = {task: self._shrink[task] for task in tasks}
        return await asyncio.get_running_loop().run_in_executor(self._decoders, _pixels, image, shrink)

    async def _is_alive(self, task: Task) -> bool:
        try:
            return bool(await self._runners[task].is_ready(2))
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _warm_up(self) -> None:
        """Send grey pictures through each runner: BentoML's batching trains on the first eleven calls."""

        async def warm(task: Task) -> None:
            options = OPTIONS[task]().model_dump()
            item = {"pixels": np.full((480, 640, 3), 127, np.uint8), "size": (640, 480), "options": options}
            while "error" in await self._queues[task].predict(item):
                await asyncio.sleep(0.5)
            for _ in range(11):
                await self._queues[task].predict(item)

        await asyncio.gather(*map(warm, TASKS))
        gc.freeze()  # what is here now stays; no later collection needs to walk through it
        self._warm = True
        log.info("ready: %s", ", ".join(f"{card['name']}:{card['version']}" for card in _cards()))


def _pixels(data: bytes, shrink: Mapping[Task, Shrink]) -> tuple[dict[Task, Pixels], tuple[int, int]]:
    picture, size = images.decode_reduced(data, SETTINGS.limits())
    return {task: one(picture) for task, one in shrink.items()}, size


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 2)


@cache
def _cards() -> list[dict[str, Any]]:
    return [store.read_card(store.folder(SETTINGS.tag(task))).model_dump() for task in TASKS]


def _tell(task: Task, result: dict[str, Any]) -> None:
    """Count a picture, and note in the request's log line which model answered."""
    metrics.IMAGES.labels(task, result["error"]["code"] if "error" in result else "ok").inc()
    if "model" in result:
        model = f"{result['model']['name']}:{result['model']['version']}"
        models = http.FACTS.get().models
        if model not in models:
            models.append(model)


async def list_models(_: Request) -> JSONResponse:
    """GET /models: what is served, from each model's card."""
    return JSONResponse({"models": _cards()})


async def ready(_: Request) -> JSONResponse:
    """GET /readyz: 200 when every runner is warm and answers, and the service is not about to end."""
    runners = await bentoml.get_current_service().readiness()
    return http.readiness(all(state == "ready" for state in runners.values()), dict(runners))


async def version(_: Request) -> JSONResponse:
    """GET /version: what runs here."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return JSONResponse({"version": vision.__version__, "bento": server_context.bento_version, "libraries": libraries})


PAGES = {"/models": list_models, "/readyz": ready, "/version": version}
