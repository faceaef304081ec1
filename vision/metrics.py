"""Prometheus metrics of the service, beside BentoML's own on /metrics. Every label has few values, known beforehand."""

import logging
import mmap
import os
import sys
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram, mmap_dict, values

from vision.bento import insides, logs

log = logging.getLogger("bentoml.vision")


class Samples(mmap_dict.MmapedDict):
    """Prometheus' file of samples, mapped into memory, whose disk blocks are claimed before they are written to.

    As it comes, it is a file with holes: on a full disk a write into one ends the process (SIGBUS). Here the samples
    go on in memory then, where /metrics does not find them.
    """

    is_told = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            try:
                with Path(filename).open("ab") as file:
                    os.posix_fallocate(file.fileno(), 0, mmap_dict._INITIAL_MMAP_SIZE)
            except OSError as error:
                Path(filename).unlink(missing_ok=True)
                filename = self._in_memory(error)
        super().__init__(filename, read_mode)

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + 32 > self._capacity:  # it will be made twice as long
            try:
                os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            except OSError as error:
                written = self._m[:]
                self._f.close()
                self._f = Path(self._in_memory(error)).open("a+b")  # noqa: SIM115
                self._f.truncate(self._capacity)
                self._m = mmap.mmap(self._f.fileno(), self._capacity)
                self._m[:] = written
        super()._init_value(key)

    @classmethod
    def _in_memory(cls, error: OSError) -> str:
        """Return a file that is on no disk."""
        if not cls.is_told:
            logs.configure()  # the first metrics are made while modules are imported
            log.warning("metrics of process %d are lost from here on: %s", os.getpid(), error.strerror)
            cls.is_told = True
        return f"/proc/self/fd/{os.memfd_create('samples')}"


if sys.platform == "linux":  # others cannot claim blocks
    insides.replace(values, "MmapedDict", Samples)

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

# Only public processes set the gauges. What each of those that live counts is added up; what all see is the same.
REQUESTS = Counter("vision_requests", "Requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("vision_request_seconds", "From the headers to the answer.", ["route"], buckets=SECONDS)
IN_FLIGHT = Gauge("vision_requests_in_flight", "Requests in work.", multiprocess_mode="livesum")
REFUSALS = Counter("vision_refusals", "Requests refused before work, by error code.", ["reason"])
IMAGES = Counter(
    "vision_images", "Pictures by task, model and outcome: ok or an error code.", ["task", "model", "outcome"]
)
DECODE_SECONDS = Histogram("vision_decode_seconds", "Decoding of a picture.", buckets=SECONDS)
QUEUE_IMAGES = Gauge(
    "vision_queue_images", "Pictures waiting for a model or in it.", ["task", "model"], multiprocess_mode="livesum"
)
INFERENCE_SECONDS = Histogram(
    "vision_inference_seconds", "One batch through a model.", ["task", "model"], buckets=SECONDS
)
BATCH_IMAGES = Histogram(
    "vision_batch_images", "Pictures in a batch.", ["task", "model"], buckets=(1, 2, 4, 8, 12, 16, 32)
)
GPU_MEMORY = Gauge(
    "vision_gpu_memory_used_bytes", "Memory in use of a GPU, by all.", ["gpu"], multiprocess_mode="mostrecent"
)
GPU_MEMORY_TOTAL = Gauge("vision_gpu_memory_bytes", "Memory of a GPU.", ["gpu"], multiprocess_mode="mostrecent")
GPU_UTILIZATION = Gauge(
    "vision_gpu_utilization", "Share of time in which a GPU worked, 0-1.", ["gpu"], multiprocess_mode="mostrecent"
)
MODEL_INFO = Gauge(
    "vision_model_info", "Which models are served; always 1.", ["task", "name", "version"], multiprocess_mode="max"
)


def use_files() -> None:
    """Keep samples in PROMETHEUS_MULTIPROC_DIR from now on, from nought: in a copy of a process that had none."""
    insides.replace(values, "ValueClass", values.get_value_class())
    for metric in (IN_FLIGHT, DECODE_SECONDS):  # which have samples already; others get theirs with their labels
        metric._metric_init()
