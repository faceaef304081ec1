"""python -m benchmarks.feed_bulk [--workers 0 1 2]: what it costs bulk to feed a GPU, by a null model in its place.

The classifier sleeps for as long as a card works and takes no CPU, as in `benchmarks.feed`; 0: in the one process. Bulk
reads JPEGs of 0.1 MB that all differ in their bytes, measures their quality, keeps no cache and writes Parquet. What
starting takes is left out: each figure is the difference between a long run and a short one. Prints pictures a second,
CPU milliseconds a picture of the workers and of the models' process, and what remains over decoding (measured alone).
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.bulk import fill
from benchmarks.feed import Decoding
from benchmarks.gpu import photographs
from benchmarks.servers.null import Null
from bulk import processes, questions, run
from bulk.listing import Columns
from bulk.places import Folder
from bulk.progress import Progress
from bulk.questions import GPU_BATCH, Loaded, Wanted
from bulk.score import Scorer
from testkit.photographs import encoded
from testkit.servers import OFFLINE, ROOT
from vision.bento import store
from vision.core.decoders import keep_freed_memory
from vision.core.images import LIMITS
from vision.core.look import in_process
from vision.tasks import TASKS

SHARD_ROWS = 100


class Spent(NamedTuple):
    """Seconds: of the clock from the first picture on, of the CPU by whoever feeds, and by the models' process."""

    wall: float
    feeding: float
    models: float


def load_null(wanted: Sequence[Wanted], *_: object) -> dict[str, Loaded]:
    return {one.tag: Loaded(Null(store.read_card(store.folder(one.tag))), GPU_BATCH, "null") for one in wanted}


def run_null_models(*arguments: Any) -> None:
    """As processes.run_models(), in a process of its own."""
    with patch.object(questions, "load_each", load_null):
        processes.run_models(*arguments)


def score(photos: Path, out: Path, wanted: Wanted, workers: int) -> Spent:
    place = Folder(out)
    with place.locked():
        cards = questions.cards([wanted])
        begun = run.begin(place, str(photos), Columns(), [wanted], "parquet", SHARD_ROWS, cards)
        progress = Progress(begun.left())
        return feed(begun, wanted, progress, workers) if workers else alone(begun, wanted, progress)


def feed(begun: run.Run, wanted: Wanted, progress: Progress, workers: int) -> Spent:
    order = processes.Order(begun.place.name, (wanted,), None, LIMITS, stall_seconds=60)
    before = cpu(RUSAGE_CHILDREN)
    with processes.Models([wanted], "cpu", None) as models:
        start = perf_counter()
        asyncio.run(processes.score(begun, order, models, workers, progress))
        wall, after = perf_counter() - start, cpu(RUSAGE_CHILDREN)
    return Spent(wall, after - before, cpu(RUSAGE_CHILDREN) - after)


def alone(begun: run.Run, wanted: Wanted, progress: Progress) -> Spent:
    loaded = load_null([wanted])[wanted.tag]
    served = in_process(wanted.task, loaded.model, store.folder(wanted.tag), loaded.most)
    [asked] = questions.asked([wanted], {wanted.tag: served}, {wanted.tag: loaded.runs})

    async def go() -> None:
        scorer = Scorer([asked], None, LIMITS, stall_seconds=60)
        try:
            await run.score(begun, scorer, progress)
        finally:
            await scorer.close()

    start, before = perf_counter(), cpu(RUSAGE_SELF)
    asyncio.run(go())
    return Spent(perf_counter() - start, cpu(RUSAGE_SELF) - before, 0)


def cpu(whose: int) -> float:
    used = getrusage(whose)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, nargs=2, default=[1000, 5000], help="of the short and the long run")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder, patch.object(processes, "run_models", run_null_models):
        place = Path(folder)
        home = place / "home"
        os.environ |= {**OFFLINE, "BENTOML_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, check=True, stdout=sys.stderr)
        keep_freed_memory()
        jpeg = encoded(photographs(1)[0].resize((500, 375)), "JPEG", quality=92)
        (place / "body").write_bytes(b"\r\n\r\n" + jpeg + b"\r\n--picture")
        decoding = Decoding(home).cpu_ms(place / "body")
        short, long = (fill(place / f"{count}", jpeg, count) for count in asked.pictures)
        few, many = asked.pictures
        task = TASKS["classification"]
        tag = store.resolve(task.starter)
        assert tag is not None  # noqa: S101  it was saved above
        wanted = Wanted("classification", task, tag, task.options())
        for workers in asked.workers:
            spent = [score(photos, place / f"out-{workers}-{photos.name}", wanted, workers) for photos in (short, long)]
            wall, feeding, models = ((b - a) / (many - few) * 1000 for a, b in zip(*spent, strict=True))
            print(
                f"{workers} workers: {1000 / wall:.0f} pictures/s; CPU ms a picture: workers {feeding:.2f}, models "
                f"{models:.2f}; over decoding ({decoding:.2f}) {feeding + models - decoding:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
