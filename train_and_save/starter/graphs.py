"""Writes the graphs that ship with a starter: `python -m train_and_save.starter.graphs captioning`.

The starter's weights are converted and compared with PyTorch as any model's (train_and_save/graphs/export.py). Then
weights of a starter that ships in float16 are stored so. The card gets what each engine made in a second, and where.
The same weights and libraries give the same files.
"""

import argparse
import json
import logging
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
from openvino import opset13 as opset
from safetensors import safe_open

from train_and_save.graphs import export, streams
from train_and_save.starter import GRAPHS, STARTER, copy
from vision.bento import store
from vision.core import engine
from vision.core.engine import GRAPH, GRAPH_CONFIG
from vision.tasks.captioning.captioner import GraphWriter
from vision.tasks.captioning.spec import CaptionOptions

SMALLEST = 64
"""Numbers of a weight; what is smaller may be an epsilon."""


def write(task: str) -> None:
    """Write the graphs of a starter and its card's `engines`. Raises RuntimeError where it has no graph that does."""
    shipped = STARTER / task
    with TemporaryDirectory() as place:
        folder, out = Path(place) / "model", Path(place) / GRAPHS
        folder.mkdir()
        out.mkdir()
        copy(shipped, folder)
        card = export.add_graph(folder, store.read_card(shipped))
        if not (folder / GRAPH).is_file():
            raise RuntimeError(
                f"{card.name} has no graph that answers as PyTorch does and is faster; the log says why."
            )
        half = _in_half(shipped)
        for graph in sorted(folder.glob("openvino*.xml")):
            _write(graph, out / graph.name, half)
        if (folder / GRAPH_CONFIG).is_file():
            shutil.copyfile(folder / GRAPH_CONFIG, out / GRAPH_CONFIG)
        if task == "captioning":
            _compare(folder, out)
        shutil.rmtree(shipped / GRAPHS, ignore_errors=True)
        shutil.copytree(out, shipped / GRAPHS)
    engines = {f"{machine()}, {name}": pace for name, pace in card.engines.items() if not name.startswith(machine())}
    told = json.loads((shipped / store.CARD).read_text()) | {"engines": engines}
    (shipped / store.CARD).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def machine() -> str:
    name: str = ov.Core().get_property("CPU", "FULL_DEVICE_NAME")
    return f"{name}, {os.cpu_count()} cores"


def _in_half(shipped: Path) -> bool:
    """Whether a starter's own weights are float16."""
    with safe_open(shipped / "model.safetensors", "numpy") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (no dict)
    return "F16" in kinds


def _write(graph: Path, out: Path, half: bool) -> None:
    """Copy a graph without a choice of streams; where `half`, weights become float16 that lose nothing by it.

    Most do not: they were float16 before OpenVINO read them.
    """
    model = engine.read(graph)
    if model.has_rt_info(engine.STREAMS):
        del model.rt_info[engine.STREAMS[0]]
    for op in model.get_ops() if half else []:
        if op.get_type_name() != "Constant" or op.data.dtype != np.float32 or op.data.size < SMALLEST:
            continue
        narrow = op.data.astype(np.float16)
        if not np.array_equal(narrow, op.data):
            logging.info("%s %s stays in float32", op.get_friendly_name(), op.data.shape)
            continue
        wide = opset.convert(opset.constant(narrow), "f32")
        for target in list(op.output(0).get_target_inputs()):
            target.replace_source_output(wide.output(0))
    ov.save_model(model, out, compress_to_fp16=False)


def _compare(folder: Path, out: Path) -> None:
    """See that the captioner writes the same with weights in float16."""
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    before, after = (
        [said.text for said in GraphWriter(place).write(streams.noise_pictures(), CaptionOptions())]
        for place in (folder, out)
    )
    (out / "tokenizer.json").unlink()
    if before != after:
        raise RuntimeError(f"in float16 it writes something else: {after} in place of {before}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m train_and_save.starter.graphs", description=__doc__)
    parser.add_argument("task", choices=["classification", "captioning", "detection"])
    write(parser.parse_args().task)
