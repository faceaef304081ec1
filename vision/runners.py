"""The three runner Services: one model each, in a process of its own, behind BentoML's adaptive batching."""

import gc
import logging
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from bentoml._internal.bento.bento import BentoModelInfo
from bentoml.models import BentoModel

from vision import device, logs, metrics, models, shutdown, store
from vision.app import RunnerService
from vision.errors import VisionError
from vision.models.engine import DeviceLostError
from vision.schemas import OPTIONS, TASKS, Failure, Item, Task
from vision.settings import SETTINGS

MAX_BATCH_SIZE = 32 if any(device.likely_gpu(SETTINGS.device, task) for task in TASKS) else 16
"""Pictures in a call of a runner. GPUs are fed best by many; a CPU is no faster, and others would wait longer."""

BESIDE: dict[Task, int] = {"classification": 8, "captioning": 4, "detection": 8}
"""Pictures that a runner takes while it works on a batch: so it has some when the batch is done, and who comes later
does not wait for all of a batch, which takes long where sentences are written."""

log = logging.getLogger("bentoml.vision")

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
    """One model. Subclasses name its task and its place in the model store."""

    task: Task
    stored: StoredModel

    def __init__(self) -> None:
        logs.configure()
        wanted = device.wanted(SETTINGS.device, self.task)
        place = models.pick_device(wanted)
        folder = Path(self.stored.path)
        try:
            self._model = models.load(folder, store.verify(folder), place, engines=SETTINGS.engine_dir)
            self._warm_up(place)
        except DeviceLostError as error:
            shutdown.leave_for_another(f"{self.task}: {place} is lost: {error}")
        gc.freeze()  # what is here now stays; no later collection needs to walk through it
        why = " (no GPU found)" if wanted == "auto" and place == "cpu" else ""
        _, gpu = device.choose(place)
        where = f"{place} ({gpu})" if gpu else f"{place}{why}"
        log.info("%s: %s:%s on %s", self.task, self._model.card.name, self._model.card.version, where)

    def _warm_up(self, place: str) -> None:
        """Predict on grey pictures, alone and several: kernels are chosen and memory is claimed at first use.

        On a GPU in every size of a batch, which are recorded now.
        """
        grey = Item(np.full((480, 640, 3), 127, np.uint8), (640, 480), OPTIONS[self.task]())
        sizes = [1, 2]
        while place != "cpu" and sizes[-1] < MAX_BATCH_SIZE:
            sizes.append(2 * sizes[-1])
        for size in sizes:
            models.predict_each(self._model, [grey] * size)

    @bentoml.on_startup
    def leave_last(self) -> None:
        shutdown.leave_last()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=60_000)
    def predict(self, items: list[Any]) -> list[dict[str, Any]]:
        """Items {pixels, size, options} (see schemas.Item) -> for each its result's fields, or `{"error": ...}`."""
        batch = [
            Item(item["pixels"], item["size"], OPTIONS[self.task].model_construct(**item["options"])) for item in items
        ]
        metrics.BATCH_IMAGES.labels(self.task).observe(len(batch))
        try:
            with metrics.INFERENCE_SECONDS.labels(self.task).time():
                results = models.predict_each(self._model, batch)
        except DeviceLostError as error:
            shutdown.leave_for_another(f"{self.task}: its GPU is lost: {error}")
        return [(Failure.of(result) if isinstance(result, VisionError) else result).model_dump() for result in results]


@bentoml.service(name="classification", **CONFIG)
class ClassificationRunner(Runner):
    task: Task = "classification"
    stored = StoredModel(SETTINGS.classification_model)


@bentoml.service(name="captioning", **CONFIG)
class CaptioningRunner(Runner):
    task: Task = "captioning"
    stored = StoredModel(SETTINGS.captioning_model)


@bentoml.service(name="detection", **CONFIG)
class DetectionRunner(Runner):
    task: Task = "detection"
    stored = StoredModel(SETTINGS.detection_model)
