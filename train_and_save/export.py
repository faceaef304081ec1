"""Writes a starter's network as an OpenVINO graph beside its weights, where that is the faster engine here.

It is measured as it is saved: the graph must answer as PyTorch does, and what each engine makes in a second goes onto
the model's card.
"""

import json
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
import torch
from torch import nn

from vision.models import engine, nanodet_module
from vision.models.classifier import GRAPH_CONFIG
from vision.models.engine import Engine, Floats
from vision.models.nanodet import SIDE
from vision.models.transformers_classifier import TransformersNetwork

BATCH = 4
TOLERANCE = 1e-3
"""Of logits, scores and pixels of a box; on AVX2 and avx512_bf16 alike 1.5e-4 was the largest difference seen."""

SECONDS = 1.0


def classification(folder: Path) -> dict[str, float]:
    """Add a graph, where it is the faster, to a timm classifier; return images/s by engine. Raises ValueError."""
    network = TransformersNetwork(folder, "cpu")
    config = network.processor.data_config
    steps = network.processor.val_transforms.transforms
    paces = _add_graph(folder, network.module, (3, *config["input_size"][1:]))
    around = {
        "labels": network.labels,
        "multi_label": network.multi_label,
        "resize": steps[0].size,
        "crop": steps[1].size[0],
        "resample": config["interpolation"].upper(),
        "mean": config["mean"],
        "std": config["std"],
    }
    if engine.has_graph(folder, "cpu"):
        (folder / GRAPH_CONFIG).write_text(json.dumps(around, indent=1))
    return paces


def detection(folder: Path) -> dict[str, float]:
    """Add a graph, where it is the faster, to a NanoDet; return images/s by engine. Raises ValueError."""
    labels = json.loads((folder / "config.json").read_text())["labels"]
    return _add_graph(folder, nanodet_module.load(folder, len(labels)), (3, SIDE, SIDE))


def _add_graph(folder: Path, module: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    inputs = torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eager = engine.eager(module, "cpu")
    with TemporaryDirectory() as place:
        _convert(module, inputs, shape, Path(place))
        graph = engine.openvino(Path(place))
        difference = max(
            float(np.abs(ours - theirs).max())
            for ours, theirs in zip(graph(inputs.numpy()), eager(inputs.numpy()), strict=True)
        )
        if difference > TOLERANCE:
            raise ValueError(
                f"OpenVINO's answers differ from PyTorch's by {difference:g}; at most {TOLERANCE:g} may be."
            )
        paces = _paces({"pytorch eager": eager, "openvino float32": graph}, inputs.numpy())
        if paces["openvino float32"] > paces["pytorch eager"]:
            for file in Path(place).iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
    return paces


def _convert(module: nn.Module, inputs: torch.Tensor, shape: tuple[int, ...], out: Path) -> None:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.trace, which convert_model goes through
        model = ov.convert_model(module, example_input=inputs)
    model.reshape([-1, *shape])
    ov.save_model(model, out / engine.GRAPH, compress_to_fp16=False)


def _paces(engines: dict[str, Engine], inputs: Floats) -> dict[str, float]:
    """Images a second of each, the best of runs in turns: a machine's noise only ever slows."""
    best = dict.fromkeys(engines, 0.0)
    end = time.perf_counter() + SECONDS * len(engines)
    for run in engines.values():
        run(inputs)
    while time.perf_counter() < end:
        for name, run in engines.items():
            start = time.perf_counter()
            run(inputs)
            best[name] = max(best[name], len(inputs) / (time.perf_counter() - start))
    return {name: round(pace, 1) for name, pace in best.items()}
