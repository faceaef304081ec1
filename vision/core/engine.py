"""What runs a network: OpenVINO where the model was saved with a graph for it, else PyTorch.

Importing torch and what stands on it costs a runner some twenty seconds of a core and most of a gigabyte, OpenVINO less
than one second and a quarter of the memory. train_and_save/graphs/export.py writes the graph, once it has seen there
that it answers as PyTorch does and is faster.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import openvino as ov
    from torch import nn

Floats = NDArray[np.float32]
Engine = Callable[..., tuple[Floats, ...]]
"""The network's inputs, arrays (B, ...) -> its outputs, each (B, ...), on the CPU. Most take pixels (B, 3, H, W)."""

GRAPH = "openvino.xml"
"""Beside its weights, openvino.bin."""

GRAPH_CONFIG = "openvino.json"
"""What stands around the graph, where the model's code does not know it: labels, preprocessing, a search's rules."""


STREAMS = ["vision", "streams"]
"""Where a graph's runtime information says that many pictures are done faster with a core for each."""


class DeviceLostError(Exception):
    """A GPU's error after which nothing more works in this process."""


Hint = Literal["LATENCY", "THROUGHPUT"]
"""A call has all cores, or as many calls as are best here have some each."""


def has_graph(folder: Path, device: str) -> bool:
    return device == "cpu" and (folder / GRAPH).is_file()


class Graph:
    """An OpenVINO graph, compiled for this machine's CPU in float32, whatever the processor could do."""

    def __init__(self, model: "ov.Model", hint: Hint) -> None:
        import openvino as ov

        # Makes a table at its first use, with and without Python's lock: two threads at once would wait forever.
        ov.Type.f32.to_dtype()
        self._compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                # On processors with bfloat16 the default would be that, and two machines would give two answers.
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": hint,
                # Three runners share the cores: pinned threads would all sit on the same ones.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.streams: int = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        """Calls that it works on at a time; more wait."""
        self._idle: list[ov.InferRequest] = []  # each has memory of its own, for one thread at a time

    def __call__(self, *inputs: NDArray[Any]) -> tuple[Floats, ...]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        outputs: Any = request.infer(inputs, share_inputs=True)
        self._idle.append(request)
        return tuple(outputs[index] for index in range(len(self._compiled.outputs)))


class Running:
    """How many pictures are in work, in all threads."""

    def __init__(self) -> None:
        self._count, self._lock = 0, threading.Lock()

    @contextmanager
    def with_these(self, count: int) -> Iterator[int]:
        with self._lock:
            self._count += count
            running = self._count
        try:
            yield running
        finally:
            with self._lock:
                self._count -= count


class Streams:
    """A graph that is given one picture at a time: a few with all cores for each, more with a core for each.

    Cores that share a picture wait for each other at every layer, and long when another process takes one of them.
    """

    def __init__(self, model: "ov.Model") -> None:
        model.reshape({part: [1, *list(part.partial_shape)[1:]] for part in model.inputs})
        self._alone, self._beside = Graph(model, "LATENCY"), Graph(model, "THROUGHPUT")
        self._workers = ThreadPoolExecutor(self._beside.streams)
        self._running = Running()

    def __call__(self, *inputs: NDArray[Any]) -> tuple[Floats, ...]:
        each = [[values[index : index + 1] for values in inputs] for index in range(len(inputs[0]))]
        with self._running.with_these(len(each)) as running:
            if running > self._beside.streams / 2:
                outputs = list(self._workers.map(lambda one: self._beside(*one), each))
            else:
                outputs = [self._alone(*one) for one in each]
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))


def openvino(folder: Path) -> Engine:
    """Load a model's graph as it was found to be faster where it was saved."""
    model = read(folder / GRAPH)
    return Streams(model) if model.has_rt_info(STREAMS) else Graph(model, "LATENCY")


def read(graph: Path) -> "ov.Model":
    import openvino as ov

    return ov.Core().read_model(graph)


def eager(module: "nn.Module", device: str) -> Engine:
    """Run a module that is in evaluation mode and whose forward returns a tensor or a tuple of them, as it is."""
    import torch

    module = module.to(device)

    @torch.inference_mode()
    def run(*inputs: NDArray[Any]) -> tuple[Floats, ...]:
        outputs = module(*(torch.from_numpy(values).to(device) for values in inputs))
        return tuple(o.cpu().numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run
