"""What runs a network: OpenVINO where the model was saved with a graph for it, else PyTorch.

Importing torch and what stands on it costs a runner some twenty seconds of a core and most of a gigabyte, OpenVINO less
than one second and a quarter of the memory. train_and_save/export.py writes the graph, once it has seen there that it
answers as PyTorch does and is faster.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Floats = NDArray[np.float32]
Engine = Callable[..., tuple[Floats, ...]]
"""The network's inputs, arrays (B, ...) -> its outputs, each (B, ...), on the CPU. Most take pixels (B, 3, H, W)."""

GRAPH = "openvino.xml"
"""Beside its weights, openvino.bin."""

GRAPH_CONFIG = "openvino.json"
"""What stands around the graph, where the model's code does not know it: labels, preprocessing, a search's rules."""


def has_graph(folder: Path, device: str) -> bool:
    return device == "cpu" and (folder / GRAPH).is_file()


def openvino(folder: Path, graph: str = GRAPH) -> Engine:
    """Compile a saved graph for this machine's CPU, in float32 whatever the processor could do."""
    import openvino as ov

    compiled = ov.Core().compile_model(
        folder / graph,
        "CPU",
        {
            # On processors with bfloat16 the default would be that, and two machines would give two answers.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Three runners share the cores: pinned threads would all sit on the same ones.
            "ENABLE_CPU_PINNING": False,
        },
    )

    idle: list[ov.InferRequest] = []  # each has memory of its own, for one thread at a time

    def run(*inputs: NDArray[Any]) -> tuple[Floats, ...]:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        outputs: Any = request.infer(inputs, share_inputs=True)
        idle.append(request)
        return tuple(outputs[index] for index in range(len(compiled.outputs)))

    return run


def eager(module: "nn.Module", device: str) -> Engine:
    """Run a module that is in evaluation mode and whose forward returns a tensor or a tuple of them, as it is."""
    import torch

    module = module.to(device)

    @torch.inference_mode()
    def run(*inputs: NDArray[Any]) -> tuple[Floats, ...]:
        outputs = module(*(torch.from_numpy(values).to(device) for values in inputs))
        return tuple(o.cpu().numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return run
