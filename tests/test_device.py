"""Which GPU a runner lands on, and what is told of it: with a driver that is made up here."""

from collections import namedtuple
from typing import Any

import pytest

from vision import device, gpu_metrics, metrics, settings
from vision.device import Gpu, choose, likely_gpu, wanted

LARGE, SMALL = Gpu("NVIDIA H100 80GB HBM3", 85_000_000_000), Gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10_000_000_000)


class Driver:
    """Sees what it is told to, as NVIDIA's does what CUDA_VISIBLE_DEVICES leaves."""

    def __init__(self, *gpus: Gpu) -> None:
        self._gpus = list(gpus)

    def gpus(self) -> list[Gpu]:
        return self._gpus


def test_one_setting_holds_for_all_tasks_or_names_each() -> None:
    assert wanted("cuda:1", "detection") == "cuda:1"
    each = "detection=cuda:1, classification=cuda:0"
    assert [wanted(each, task) for task in ("detection", "classification", "captioning")] == [
        "cuda:1",
        "cuda:0",
        "auto",
    ]


def test_auto_takes_the_first_gpu_that_may_be_used_and_the_cpu_where_there_is_none() -> None:
    assert choose("auto", Driver(SMALL, LARGE)) == ("cuda:0", SMALL)
    assert choose("auto", Driver()) == ("cpu", None)
    assert choose("cpu", Driver(LARGE)) == ("cpu", None)


def test_a_gpu_is_counted_among_those_that_the_operator_left() -> None:
    """Of four GPUs he may leave two by CUDA_VISIBLE_DEVICES=2,3, or one slice by its MIG name: it is cuda:0 then."""
    assert choose("cuda:1", Driver(LARGE, SMALL)) == ("cuda:1", SMALL)
    assert choose("cuda", Driver(SMALL)) == ("cuda:0", SMALL)


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(ValueError, match=r"no cuda:1 here: cuda:0 is NVIDIA H100 80GB HBM3, 85 GB"):
        choose("cuda:1", Driver(LARGE))
    with pytest.raises(ValueError, match="no GPU can be seen"):
        choose("cuda", Driver())


def test_batches_are_large_where_a_gpu_will_be_used() -> None:
    assert likely_gpu("auto", "detection", Driver(LARGE))
    assert not likely_gpu("auto", "detection", Driver())
    assert not likely_gpu("detection=cpu", "detection", Driver(LARGE))


def test_the_driver_of_a_machine_without_one_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise OSError

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert device.Cuda().gpus() == []


@pytest.mark.parametrize("value", ["gpu", "cuda:x", "detection=tpu", "sight=cuda:0", "detection"])
def test_a_device_that_is_none_ends_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_DEVICE", value)
    with pytest.raises(SystemExit, match=f"^VISION_DEVICE={value}: .* is n"):
        settings._load()


def test_a_device_for_each_task_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_DEVICE", "detection=cuda:1,classification=cuda:0")
    assert settings._load().device == "detection=cuda:1,classification=cuda:0"


class Nvml:
    """Two GPUs, and a MIG slice, whose utilisation nobody can tell."""

    class NVMLError(Exception):
        pass

    Memory = namedtuple("Memory", ["used", "total"])
    Rates = namedtuple("Rates", ["gpu"])

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVIDIA's names
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        if index > 1:
            raise self.NVMLError
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        return name

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return self.Memory(10, 80)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        if handle.startswith("MIG"):
            raise self.NVMLError
        return self.Rates(50)


def test_gpus_are_watched_that_the_service_may_use() -> None:
    nvml = Nvml()
    assert list(gpu_metrics.visible(nvml, {})) == ["0", "1"]
    assert gpu_metrics.visible(nvml, {"CUDA_VISIBLE_DEVICES": "1"}) == {"1": "gpu 1"}
    assert list(gpu_metrics.visible(nvml, {"CUDA_VISIBLE_DEVICES": "MIG-a,GPU-b"})) == ["MIG-a", "GPU-b"]
    assert list(gpu_metrics.visible(nvml, {"CUDA_VISIBLE_DEVICES": "1,7,0"})) == ["1"]
    assert gpu_metrics.visible(nvml, {"CUDA_VISIBLE_DEVICES": ""}) == {}


def test_memory_and_utilisation_are_told() -> None:
    gpu_metrics.look(Nvml(), {"0": "gpu 0", "MIG-a": "MIG-a"})
    [used] = metrics.GPU_MEMORY.collect()
    assert {sample.labels["gpu"]: sample.value for sample in used.samples} == {"0": 10, "MIG-a": 10}
    [share] = metrics.GPU_UTILIZATION.collect()
    assert {sample.labels["gpu"]: sample.value for sample in share.samples} == {"0": 0.5}
