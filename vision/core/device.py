"""Which device a model runs on, asked of NVIDIA's driver: torch, which takes seconds to import, need not be there."""

import ctypes
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vision.core.schemas import Card

if TYPE_CHECKING:
    from vision.core.cuda import Plan

TORCH_BY = "PyTorch is not installed; `make serve FULL=1` installs it, and serves"
"""What to do where something needs it, and the light install is here."""

NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Gpu:
    """name: as the driver calls it, for a MIG slice with its size; memory: bytes."""

    name: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 1e9:.0f} GB"


@dataclass(frozen=True)
class Device:
    """Where a model runs: "cpu" or "cuda:0"; and on a GPU how, in which precision and by what code."""

    name: str
    how: "Plan | None" = None


CPU = Device("cpu")


class Driver(Protocol):
    def gpus(self) -> list[Gpu]:
        """Return what this process may use, in the order of "cuda:0", "cuda:1"; none without a GPU or a driver.

        CUDA_VISIBLE_DEVICES (numbers, GPU or MIG names) holds here as it does for torch.
        """
        ...


class Cuda:
    """The driver of this machine."""

    def gpus(self) -> list[Gpu]:
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            return []
        count = ctypes.c_int()
        if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [self._gpu(library, index) for index in range(count.value)]

    @staticmethod
    def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        return Gpu(name.value.decode(), memory.value)


DRIVER = Cuda()


def wanted(setting: str, task: str) -> str:
    """Return what VISION_DEVICE says of a task; one that it leaves out is "auto". Raises ValueError."""
    if "=" not in setting:
        return _checked(setting)
    said = (part.strip().partition("=") for part in setting.split(","))
    return {name: _checked(device) for name, _, device in said}.get(task, "auto")


def choose(wanted: str, driver: Driver = DRIVER) -> tuple[str, Gpu | None]:
    """Return the device, "cpu" or "cuda:0", and its GPU. Raises ValueError for one that is not there."""
    if wanted == "cpu":
        return "cpu", None
    gpus = driver.gpus()
    if wanted == "auto" and not gpus:
        return "cpu", None
    index = int(wanted.partition(":")[2] or 0)
    if index >= len(gpus):
        there = "; ".join(f"cuda:{i} is {gpu}" for i, gpu in enumerate(gpus)) or "no GPU can be seen"
        raise ValueError(f"there is no {wanted} here: {there}. CUDA_VISIBLE_DEVICES says what may be seen.")
    return f"cuda:{index}", gpus[index]


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_torch() -> bool:
    """Whether PyTorch is installed, which GPUs and models without a graph need; it is not imported."""
    return find_spec("torch") is not None


def planned(name: str, folder: Path, card: Card, engines: Path | None = None) -> Device:
    """Return a device, "cpu" or "cuda:0", with how a saved model runs there.

    That is what `optimize` kept, in its folder `engines` or beside the model, if it was made for this GPU. Raises
    ValueError where that is damaged.
    """
    if name == "cpu":
        return CPU
    from vision.core import cuda

    folders = [folder] if engines is None else [engines / f"{card.name}-{card.version}", folder]
    return Device(name, cuda.plan(card.name, name, folders, card.half))


def likely_gpu(setting: str, task: str, driver: Driver = DRIVER) -> bool:
    """Whether a task will run on a GPU. Never fails."""
    device = wanted(setting, task)
    return device.startswith("cuda") or (device == "auto" and has_torch() and bool(driver.gpus()))


def _checked(device: str) -> str:
    if not NAMES.fullmatch(device):
        raise ValueError(f"{device!r} is none of auto, cpu, cuda and cuda:1")
    return device
