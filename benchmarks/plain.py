"""python -m benchmarks.plain: bulk scoring beside HTTP in requests of sixteen, and beside a plain script.

The script is what the reference libraries' documentation shows for a folder: transformers' pipeline with batches and
loader workers, a DataLoader before `generate`, `YOLO.predict`; for NanoDet its eager loop (`benchmarks.documented`).
They take their turns at the same pictures, each with its model loaded.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import documented, weights
from benchmarks.bulk import Bulk, fill
from benchmarks.case import Case
from benchmarks.client import multipart
from benchmarks.gpu import MANY, load_on
from bulk.score import AT_ONCE
from testkit.servers import OFFLINE, ROOT, SERVE, served
from vision.tasks import TASKS

BATCH, LOADERS = 16, 2

CLIENTS = 4


class Pictures(Dataset[Any]):
    """A data set for torch: pictures, opened where a loader asks for them."""

    def __init__(self, files: list[Path], prepare: Any = None) -> None:
        self._files, self._prepare = files, prepare

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self._files[index]) as image:
            picture = image.convert("RGB")
        return self._prepare(picture) if self._prepare else picture


def answers(case: Case, files: list[Path]) -> Iterator[Any]:
    """Yield something for each picture, or for each batch, as it is answered."""
    if case.task == "classification":
        from transformers import pipeline

        classify: Any = pipeline("image-classification", model=str(case.original), device="cpu")
        yield from classify(Pictures(files), batch_size=BATCH, num_workers=LOADERS, top_k=5)
    elif case.task == "captioning":
        yield from captions(case, files)
    elif case.original.suffix == ".pt":
        from ultralytics.models.yolo.model import YOLO

        model: Any = YOLO(case.original)
        yield from model.predict(str(files[0].parent), stream=True, batch=BATCH, imgsz=640, device="cpu", verbose=False)
    else:
        look = documented.load(case)
        for file in files:
            with Image.open(file) as image:
                yield look(image)


def captions(case: Case, files: list[Path]) -> Iterator[str]:
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    from vision.tasks.captioning import grid_encoder

    grid_encoder.register()
    processor = AutoImageProcessor.from_pretrained(case.original)
    tokenizer = AutoTokenizer.from_pretrained(case.original)
    loader: Any = VisionEncoderDecoderModel
    model = loader.from_pretrained(case.original, dtype=torch.float32).eval()
    prepared = Pictures(files, lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0])
    with torch.inference_mode():
        for batch in DataLoader(prepared, BATCH, num_workers=LOADERS):
            yield from tokenizer.batch_decode(model.generate(pixel_values=batch), skip_special_tokens=True)


def script(photos: Path) -> None:
    """Print pictures a second, from when the first are answered."""
    files = sorted(photos.iterdir())
    times = [perf_counter() for _ in answers(Case.from_environment(), files)]
    first = 2 * BATCH
    print((len(times) - first) / (times[-1] - times[first - 1]))


def run_script(case: Case, photos: Path) -> float:
    environment = {**os.environ, **OFFLINE, **case.environment()}
    command = [sys.executable, "-m", "benchmarks.plain", "--script", str(photos)]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(run.stdout.split()[-1])


def compare(case: Case, home: Path, picture: bytes, rounds: int, seconds: float, place: Path) -> dict[str, float]:
    """Return the medians of bulk, HTTP and the script, in pictures a second."""
    body = place / f"{case.name}.body"
    body.write_bytes(multipart([picture] * MANY, {name: str(value) for name, value in case.options.items()}))
    found: dict[str, list[float]] = {"bulk": [], "HTTP": [], "script": []}
    with Bulk(case, home) as bulk, TemporaryDirectory(dir=place) as folder:
        few = fill(Path(folder) / "few", picture, 3 * AT_ONCE)
        rate = bulk.ask(few)["rate"]
        many = fill(Path(folder) / "many", picture, 2 * AT_ONCE + int(rate * seconds))
        some = fill(Path(folder) / "some", picture, 4 * BATCH + int(rate * seconds / 4))
        for _ in range(rounds):
            found["bulk"].append(bulk.ask(many)["rate"])
            found["script"].append(run_script(case, some))
            with served(home, SERVE, **{weights.setting(case.task): case.tag}) as running:
                url = f"{running.url}/{TASKS[case.task].endpoint}"
                load_on(url, body, clients=CLIENTS, seconds=2)  # warms up
                load = load_on(url, body, clients=CLIENTS, seconds=seconds)
            found["HTTP"].append(len(load.ms) * MANY / load.seconds)
    return {name: median(rates) for name, rates in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cases", choices=("starters", "all"), default="starters")
    parser.add_argument("--pictures", nargs="+", choices=("small", "large"), default=["small"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    asked = parser.parse_args()
    if asked.script:
        script(asked.script)
        return
    with TemporaryDirectory() as folder:
        place = Path(folder)
        home = place / "bentoml"
        cases = weights.starters(home, list(TASKS))
        if asked.cases == "all":
            cases += weights.production(home, place, ["classification", "detection"])
        photos = weights.pictures()
        for name in asked.pictures:
            for case in cases:
                found = compare(case, home, photos[name], asked.rounds, asked.seconds, place)
                ratios = {other: round(found["bulk"] / found[other], 2) for other in ("HTTP", "script")}
                print(f"{case.name}, {name}: {json.dumps(found)}; bulk over HTTP, the script: {ratios}", flush=True)


if __name__ == "__main__":
    main()
