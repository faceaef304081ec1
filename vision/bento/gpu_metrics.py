"""Memory and utilisation of the GPUs that this service may use, by NVIDIA's management library (pynvml)."""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

import pynvml

from vision import metrics

SECONDS = 5.0
"""Between two looks; the driver itself tells the utilisation of its last second or less."""

log = logging.getLogger("bentoml.vision")


def visible(library: Any, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return NVML's handles of the GPUs, or MIG slices, that CUDA_VISIBLE_DEVICES leaves, by number or name."""
    names = environment.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return {str(index): library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())}
    handles = {}
    for name in filter(None, names.split(",")):
        try:
            by_name = not name.isdigit()
            handles[name] = (
                library.nvmlDeviceGetHandleByUUID(name) if by_name else library.nvmlDeviceGetHandleByIndex(int(name))
            )
        except library.NVMLError:
            break  # CUDA takes none from the first on that is not there
    return handles


def look(library: Any, handles: Mapping[str, Any]) -> None:
    for name, handle in handles.items():
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        metrics.GPU_MEMORY.labels(name).set(memory.used)
        metrics.GPU_MEMORY_TOTAL.labels(name).set(memory.total)
        try:
            share = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except library.NVMLError:
            continue  # a MIG slice has none
        metrics.GPU_UTILIZATION.labels(name).set(share)


async def watch(library: Any = pynvml) -> None:
    """Look again and again. Where the library or a GPU is not there, end: there is nothing to tell."""
    try:
        library.nvmlInit()
        handles = visible(library, os.environ)
    except library.NVMLError:
        return
    while handles:
        try:
            await asyncio.to_thread(look, library, handles)
        except library.NVMLError as error:
            log.warning("the GPU's memory and utilisation are told no more: %s", error)
            return
        await asyncio.sleep(SECONDS)
