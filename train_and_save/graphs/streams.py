"""Which of a graph's two ways is the faster here: all cores for each picture, or a core for each (OpenVINO's streams).

No torch is needed: the starters ship their graphs, and this is chosen anew on each machine that they are saved on.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vision.core import engine
from vision.core.schemas import Pixels
from vision.tasks.captioning.captioner import DECODER_GRAPH, GraphWriter, StreamsWriter
from vision.tasks.captioning.spec import CaptionOptions

EAGER, OPENVINO, OPENVINO_STREAMS = "pytorch eager", "openvino float32", "openvino float32, streams"

BATCH = 8
SECONDS, FIRST_SECONDS = 1.0, 0.5
"""That an engine is measured for; the second where a newcomer waits for the first answer."""

STREAMS_GAIN = 1.05
"""How much faster a core for each picture must be: the graph then lies in memory twice."""

EAGER_GAIN = 1.1
"""How much faster PyTorch must be: it takes a gigabyte and twenty seconds more, and the light install lacks it."""


def choose(folder: Path) -> dict[str, float]:
    """Measure a starter's graphs both ways, keep the faster; return images/s of each."""
    with TemporaryDirectory() as place:
        marked = Path(place)
        mark(folder, marked)
        runs: dict[str, Callable[[], Any]]
        if (folder / DECODER_GRAPH).is_file():
            pictures, options = noise_pictures(), CaptionOptions()
            writers: dict[str, GraphWriter | StreamsWriter] = {
                OPENVINO: GraphWriter(folder),
                OPENVINO_STREAMS: StreamsWriter(marked),
            }
            runs = {name: partial(writer.write, pictures, options) for name, writer in writers.items()}
        else:
            [shape] = [part.partial_shape for part in engine.read(folder / engine.GRAPH).inputs]
            sides = [side.get_length() for side in list(shape)[1:]]
            noise = np.random.default_rng(0).uniform(-1, 1, (BATCH, *sides)).astype(np.float32)
            engines = {OPENVINO: engine.openvino(folder), OPENVINO_STREAMS: engine.openvino(marked)}
            runs = {name: partial(one, noise) for name, one in engines.items()}
        found = paces(runs, FIRST_SECONDS)
        keep_fastest(found, folder, marked, folder)
    return found


@contextmanager
def two_folders() -> Iterator[tuple[Path, Path]]:
    with TemporaryDirectory() as some, TemporaryDirectory() as others:
        yield Path(some), Path(others)


def picture(height: int, width: int) -> Pixels:
    """A picture of noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def noise_pictures() -> list[Pixels]:
    return [picture(240 + index, 320) for index in range(BATCH)]


def mark(graphs: Path, out: Path) -> None:
    """Copy graphs, marked as faster with a core for each picture."""
    import openvino as ov

    shutil.copytree(graphs, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    model = engine.read(graphs / engine.GRAPH)
    model.set_rt_info("yes", engine.STREAMS)
    ov.save_model(model, out / engine.GRAPH, compress_to_fp16=False)


def keep_fastest(found: dict[str, float], graphs: Path, streams: Path, folder: Path) -> None:
    """Put the graphs of the faster way into `folder`, maybe that of the first; none where PyTorch is clearly faster."""
    if found.get(EAGER, 0) > EAGER_GAIN * max(found[OPENVINO], found[OPENVINO_STREAMS]):
        return
    kept = streams if found[OPENVINO_STREAMS] >= STREAMS_GAIN * found[OPENVINO] else graphs
    if kept != folder:
        shutil.copytree(kept, folder, dirs_exist_ok=True)


def paces(engines: dict[str, Callable[[], Any]], seconds: float = SECONDS) -> dict[str, float]:
    """Images a second of each, the best of runs of BATCH in turns: a machine's noise only ever slows."""
    best = dict.fromkeys(engines, 0.0)
    for run in engines.values():
        run()
    end = time.perf_counter() + seconds * len(engines)
    while not all(best.values()) or time.perf_counter() < end:
        for name, run in engines.items():
            if 0 < best[name] < max(best.values()) / 2:
                continue  # the others need the time more
            start = time.perf_counter()
            run()
            best[name] = max(best[name], BATCH / (time.perf_counter() - start))
    return {name: round(pace, 2) for name, pace in best.items()}
