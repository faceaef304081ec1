"""The public Service: pictures in, content out. `bentoml serve` runs it; README.md shows how to call it."""

import asyncio
import gc
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp
import bentoml
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import vision
from vision import metrics
from vision.api import answers, cors, openapi, page, profiles, requests, wire
from vision.api.door import Door
from vision.api.endpoints import ENDPOINTS, Endpoint, InsightsOptions, Wanted
from vision.api.facts import FACTS
from vision.bento import accept, gpu_metrics, logs, preflight, shutdown, supervisor, workers
from vision.bento.app import TRACING, PublicService, api, bento_version, serving
from vision.bento.hop import Caller
from vision.bento.runners import RUNNERS
from vision.bento.served import find, served
from vision.core.decoders import Decoders, keep_freed_memory
from vision.core.draw import drawn
from vision.core.errors import Code, VisionError
from vision.core.look import Question, Seen, ServedModel, look
from vision.core.schemas import Item
from vision.settings import SETTINGS
from vision.tasks import TASKS

LIBRARIES = ("bentoml", "openvino", "torch", "transformers", "ultralytics", "pillow")

log = logging.getLogger("bentoml.vision")
logs.configure()
preflight.own_metrics_folder()

# BentoML reports usage to its makers unless told not to; whoever wants that sets it to False.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")


class VisionService(PublicService):
    """A BentoML Service that stands behind our door."""

    def edge(self, app: Starlette) -> ASGIApp:
        wire.install()
        accept.install()
        app.router.routes[:0] = [*page.routes(), *(Route(path, answer) for path, answer in PAGES.items())]
        return cors.around(Door(app))

    def contract(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        return openapi.contract()


def with_tasks(service: Any) -> Any:
    """Give a class the runner of each task to depend on, and the endpoints: one for each task, one for several."""
    for name, runner in RUNNERS.items():
        setattr(service, name, bentoml.depends(runner))
    for one in ENDPOINTS.values():
        answer = partial(service.answer, endpoint=one)
        setattr(service, one.name, api(one.name, one.summary, requests.fields(one), answer))
    return service


@bentoml.service(
    name="vision",
    service_class=VisionService,
    http={"host": "127.0.0.1"},
    workers=workers.COUNT,
    logging={"access": {"enabled": False}},  # the door writes a line for each request
    tracing=TRACING,
    # "none" is no distro that BentoML knows: for one it would install compilers into the image.
    image=bentoml.images.Image(base_image="python:3.11-slim-bookworm", python_version="3.11", distro="none"),
    runner_probe={"enabled": False},  # /readyz asks the runners; BentoML's own probe can raise
)
@with_tasks
class Vision:
    """Looks at pictures: which class, what a sentence would say, which objects and where.

    Its endpoints and runners are those of TASKS.
    """

    def __init__(self) -> None:
        logs.configure()
        keep_freed_memory()
        self._callers = {name: Caller(task) for name, task in TASKS.items()}
        self.models = {name: served(task, self._callers[name]) for name, task in TASKS.items()}
        places = max(1, (os.cpu_count() or 1) // workers.COUNT)
        self._decoders = Decoders(
            places, SETTINGS.limits(), SETTINGS.key_pixels, SETTINGS.request_seconds, workers.ledger()
        )

    async def answer(self, request: Request, endpoint: Endpoint) -> Response:
        """Answer a request to an endpoint."""
        try:
            asked = await requests.read(request, endpoint)
            questions = self._questions(asked.wanted)
        except VisionError as error:
            return answers.refusal(error)
        facts = FACTS.get()
        facts.images = len(asked.images)
        facts.models = [question.model.tag for question in questions.values()]
        options, beside = asked.options, {}
        measures = endpoint.beside is not None
        look_at = partial(self._look, questions=questions, among=facts.images, measures=measures)
        seen = await asyncio.gather(*map(look_at, asked.images))
        if isinstance(options, InsightsOptions):
            beside = {endpoint.name: profiles.together(seen, options.min_score)}
        if options.render or asked.picture:
            decode = partial(self._decoders.run, facts.caller)
            media_type = asked.picture or "image/jpeg"
            pairs = zip(asked.images, seen, strict=True)
            seen = await asyncio.gather(
                *(drawn(*pair, questions, decode=decode, media_type=media_type) for pair in pairs)
            )
        if asked.picture:
            return answers.picture(seen[0], asked.picture)
        return answers.answer(seen, endpoint.task is not None, beside)

    def _questions(self, wanted: Sequence[Wanted]) -> dict[str, Question]:
        questions: dict[str, Question] = {}
        for word, task, name, options, head_of in wanted:
            asked = Question(find(self.models[task.name], name), options, head_of)
            if twice := [
                other for other, one in questions.items() if (one.model, one.head_of) == (asked.model, head_of)
            ]:
                raise VisionError(Code.INVALID_OPTION, f"features: {twice[0]!r} and {word!r} mean the same model.")
            questions[word] = asked
        return questions

    async def _look(
        self, image: bytes | VisionError, questions: Mapping[str, Question], among: int, measures: bool
    ) -> Seen | VisionError:
        """Look at a picture, and count what came of it."""
        decode = partial(self._decoders.run, FACTS.get().caller)
        try:
            seen = await look(image, questions, decode=decode, among=among, measures=measures)
        except Exception:
            log.exception("a picture failed")
            seen = VisionError(Code.INTERNAL, "Something failed here; the log says what.")
        if isinstance(seen, Seen):
            metrics.DECODE_SECONDS.observe(seen.ms["decode"] / 1000)
        for word, question in questions.items():
            result = seen.results.get(word) if isinstance(seen, Seen) else seen
            if result is None:
                continue  # nobody's head is there
            outcome = result.code if isinstance(result, VisionError) else "ok"
            metrics.IMAGES.labels(question.model.task.name, question.model.tag, outcome).inc()
        return seen

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Run once, before any process is started."""
        supervisor.install()
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
        self._decoders.close()

    async def readiness(self) -> dict[str, dict[str, str]]:
        """Say of each runner and model whether it is ready, starting, unreachable, or stopping with the service."""
        if shutdown.is_draining():  # no runner is asked: who asks should know at once
            alive = dict.fromkeys(TASKS, False)
        else:
            alive = dict(zip(TASKS, await asyncio.gather(*map(self._is_alive, TASKS)), strict=True))
        models = {
            model.tag: self._state(alive[task], workers.warm(task, index))
            for task, served in self.models.items()
            for index, model in enumerate(served)
        }
        runners = {
            task: next((models[model.tag] for model in served if models[model.tag] != "ready"), "ready")
            for task, served in self.models.items()
        }
        return {"runners": runners, "models": models}

    def _state(self, alive: bool, warm: str) -> str:
        if shutdown.is_draining():
            return "stopping"
        if not alive:
            return "unreachable"
        return "ready" if workers.ledger().cell(warm) else "starting"

    async def _is_alive(self, task: str) -> bool:
        try:
            return bool(await getattr(self, task).is_ready(2))
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def memory(self, task: str) -> list[int] | list[None]:
        """Bytes that each of a task's models took, in their order; None where the runner cannot say now."""
        try:
            return await self._callers[task].memory()
        except VisionError:
            return [None] * len(self.models[task])

    async def _warm_up(self) -> None:
        """Send grey pictures to each model: BentoML's batching trains on the first eleven calls.

        A model is warm when each public process has done so; one that takes a dead one's place finds it warm.
        """
        ledger = workers.ledger()

        async def warm(model: ServedModel, name: str) -> bool:
            """Warm a model; return whether this was the last that anybody waited for."""
            grey = Item(np.full((480, 640, 3), 127, np.uint8), (640, 480), model.task.options())
            while isinstance(await model.queue.predict(grey), VisionError):
                await asyncio.sleep(0.5)
            for _ in range(11):
                await model.queue.predict(grey)
            with ledger.exclusive():
                ledger.set(name, 1)
                if ledger.total(name) < workers.COUNT:
                    return False
                ledger.put(name, 1)
                return all(map(ledger.cell, models))

        models = {workers.warm(task, i): one for task, served in self.models.items() for i, one in enumerate(served)}
        was_last = await asyncio.gather(*(warm(model, name) for name, model in models.items()))
        gc.freeze()  # what is here now stays; no later collection needs to walk through it
        supervisor.say_started()
        if any(was_last):
            log.info("ready: %s", ", ".join(model.tag for model in models.values()))


async def list_models(_: Request) -> Response:
    """GET /models: what is served, from each model's card, the default of each task first."""
    service: Vision = serving()
    listed = []
    for task, models in service.models.items():
        for index, (model, memory) in enumerate(zip(models, await service.memory(task), strict=True)):
            listed.append({**dict(model.card), "default": index == 0, "memory_bytes": memory})
    return answers.Json({"models": listed})


async def ready(_: Request) -> Response:
    """GET /readyz: 200 when every model is warm and its runner answers, and the service is not about to end."""
    states = await serving().readiness()
    return answers.readiness(all(state == "ready" for state in states["models"].values()), states)


async def version(_: Request) -> Response:
    """GET /version: what runs here."""
    libraries = vision.installed(*LIBRARIES)
    return answers.Json({"version": vision.__version__, "bento": bento_version(), "libraries": libraries})


PAGES = {"/models": list_models, "/readyz": ready, "/version": version}
