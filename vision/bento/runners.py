"""The runners: a process for each task, which holds the task's models behind BentoML's adaptive batching."""

import ctypes
import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import bentoml
import numpy as np
import psutil
from _bentoml_sdk import Service
from bentoml._internal.bento.bento import BentoModelInfo
from bentoml.models import BentoModel

from vision import metrics
from vision.bento import logs, shutdown, store, supervisor
from vision.bento.app import RunnerService
from vision.core import device
from vision.core.engine import DeviceLostError
from vision.core.look import MAX_BATCH
from vision.core.predictor import Predictor, pick_device, predict_each
from vision.core.queues import Result
from vision.core.schemas import Item
from vision.core.task import Task
from vision.settings import SETTINGS
from vision.tasks import TASKS

log = logging.getLogger("bentoml.vision")

GPU_BATCH = 32

GPU_GATHERS = 0.005
"""Seconds: a call of many pictures costs a GPU, and who feeds it, little more than one of the few decoded meanwhile."""

ON_GPU = {name: device.likely_gpu(SETTINGS.device, name) for name in TASKS}

MOST = {name: GPU_BATCH if on_gpu else MAX_BATCH for name, on_gpu in ON_GPU.items()}
"""Pictures in a batch of a task. GPUs are fed best by many; a CPU is no faster, and others would wait longer."""

GATHER = {name: GPU_GATHERS if on_gpu else 0 for name, on_gpu in ON_GPU.items()}
"""Seconds for which a large request's pictures wait for more of them."""

TRACING: Any = (
    {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": {"protocol": "http", "endpoint": SETTINGS.otlp_endpoint}}
    if SETTINGS.otlp_endpoint
    else {}
)

CONFIG: dict[str, Any] = {
    "service_class": RunnerService,
    "threads": 2,
    "tracing": TRACING,
    # BentoML closes the caller's session every 100 calls or 300 s while calls are in flight, which then fail.
    "runner_connection": {"max_requests": 1_000_000_000, "max_age": 1e9},
    "logging": {"access": {"enabled": False}},
    "envs": [
        {"name": "HF_HUB_OFFLINE", "value": "1"},  # what serves comes from the store, nothing from a hub
        {"name": "HF_HUB_DISABLE_PROGRESS_BARS", "value": "1"},
        {"name": "TRANSFORMERS_VERBOSITY", "value": "error"},
        {"name": "YOLO_OFFLINE", "value": "true"},
        {"name": "YOLO_AUTOINSTALL", "value": "false"},
        {"name": "YOLO_VERBOSE", "value": "false"},
    ],
}


class StoredModel(BentoModel):
    """A model of the store. One that is missing ends `bentoml build`; BentoML would look for it in a cloud."""

    def to_info(self, alias: str | None = None) -> BentoModelInfo:
        store.folder(str(self.tag))
        return super().to_info(alias)


class Runner:
    """The models of one task. Subclasses name the task, and pin the models in the order of its setting."""

    task: ClassVar[Task]
    models: ClassVar[int]

    def __init__(self) -> None:
        logs.configure()
        self._models: list[Predictor] = []
        self.memory: list[int] = []
        """Bytes that each model took: the rise of this process's private memory while it loaded and warmed up."""
        for index in range(self.models):
            before = _private_bytes()
            self._models.append(self._load(Path(getattr(self, pinned(index)).path)))
            _give_back()
            self.memory.append(max(0, _private_bytes() - before))
        gc.freeze()  # what is here now stays; no later collection needs to walk through it

    def _load(self, folder: Path) -> Predictor:
        wanted = device.wanted(SETTINGS.device, self.task.name)
        try:
            place, card = pick_device(wanted), store.verify(folder)
            model = self.task.load(folder, card, device.planned(place, folder, card, SETTINGS.engine_dir))
            self._warm_up(model, place)
        except DeviceLostError as error:
            supervisor.leave_for_another(f"{self.task.name}: {place} is lost: {error}")
        except ModuleNotFoundError as error:
            log.critical("%s:%s needs %s: %s.", folder.parent.name, folder.name, error.name, device.TORCH_BY)
            supervisor.end_the_start()
        except Exception as error:
            log.critical("%s:%s cannot be loaded: %s: %s", folder.parent.name, folder.name, type(error).__name__, error)
            supervisor.end_the_start()
        why = ""
        if wanted == "auto" and place == "cpu":
            why = " (no PyTorch for the GPU)" if device.DRIVER.gpus() else " (no GPU found)"
        _, gpu = device.choose(place)
        where = f"{place} ({gpu})" if gpu else f"{place}{why}"
        log.info("%s: %s:%s on %s", self.task.name, model.card.name, model.card.version, where)
        return model

    def _warm_up(self, model: Predictor, place: str) -> None:
        """Predict on grey pictures, alone and several: kernels are chosen and memory is claimed at first use.

        On a GPU in every size of a batch, which are recorded now.
        """
        grey = Item(np.full((480, 640, 3), 127, np.uint8), (640, 480), self.task.options())
        sizes = [1, 2]
        while place != "cpu" and sizes[-1] < MOST[self.task.name]:
            sizes.append(2 * sizes[-1])
        for size in sizes:
            predict_each(model, [grey] * size)

    @bentoml.on_startup
    def leave_last(self) -> None:
        shutdown.leave_last()

    def predict(self, index: int, items: Sequence[Item[Any]]) -> list[Result]:
        """Let the model at `index` look at items."""
        card = self._models[index].card
        labels = self.task.name, f"{card.name}:{card.version}"
        metrics.BATCH_IMAGES.labels(*labels).observe(len(items))
        try:
            with metrics.INFERENCE_SECONDS.labels(*labels).time():
                return predict_each(self._models[index], items)
        except DeviceLostError as error:
            supervisor.leave_for_another(f"{self.task.name}: its GPU is lost: {error}")


def pinned(index: int) -> str:
    """Name of the attribute that pins a model: BentoML takes them, like the APIs, by their names' order."""
    return f"model_{index:02}"


def method(index: int) -> str:
    """Name of the BentoML API that asks a runner's model: each model has a dispatcher of its own."""
    return f"predict_{index:02}"


def _api(index: int, most: int) -> Any:
    def predict(self: Runner, items: list[Any]) -> list[Any]:
        return self.predict(index, items)

    predict.__name__ = method(index)
    return bentoml.api(batchable=True, max_batch_size=most, max_latency_ms=60_000)(predict)


def _runner(task: Task) -> Service[Any]:
    tags = SETTINGS.models(task.name)
    models = {pinned(index): StoredModel(tag) for index, tag in enumerate(tags)}
    apis = {method(index): _api(index, MOST[task.name]) for index in range(len(tags))}
    runner = type(f"{task.name.title()}Runner", (Runner,), {"task": task, "models": len(tags), **models, **apis})
    return bentoml.service(name=task.name, **CONFIG)(runner)


def _give_back() -> None:
    """Give the system what loading took and freed, of which glibc keeps up to a hundred megabytes."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _private_bytes() -> int:
    uss: int = psutil.Process().memory_full_info().uss
    return uss


RUNNERS = {name: _runner(task) for name, task in TASKS.items()}
