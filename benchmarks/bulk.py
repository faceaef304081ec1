"""python -m benchmarks.bulk: bulk scoring beside the bare loop (benchmarks.bare), in turns, each with its model loaded.

Both take the same pictures, in threads that decode beside inference in batches; bare keeps one picture in memory and
writes nothing. Bulk reads files that all differ, measures their quality, keeps each answer in a fresh cache and writes
Parquet. Its rate is taken from when its threads are busy until they begin to run dry.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, Self

from benchmarks import weights
from benchmarks.case import Case
from benchmarks.peers import Bare
from bulk import cache, questions, run
from bulk.listing import Columns
from bulk.places import Folder
from bulk.progress import Progress
from bulk.questions import Asked, Wanted
from bulk.rows import Row
from bulk.score import AT_ONCE, Scorer
from testkit.servers import OFFLINE, ROOT
from vision.core.decoders import keep_freed_memory
from vision.core.images import LIMITS
from vision.tasks import TASKS


class Timed(Progress):
    """Notes when each row came, and what it had cost until then."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.times: list[tuple[float, float]] = []

    def count(self, row: Row) -> None:
        if row["status"] != "ok":
            raise RuntimeError(row["error"]["message"])
        self.times.append((perf_counter(), process_time()))
        super().count(row)

    def told(self) -> dict[str, float]:
        (start, cpu), (end, spent) = self.times[AT_ONCE], self.times[-AT_ONCE]
        images = len(self.times) - 2 * AT_ONCE
        return {"rate": images / (end - start), "cpu_ms": (spent - cpu) / images * 1000}


async def score(asked: Asked, photos: str, out: Path) -> dict[str, float]:
    wanted = asked.wanted
    place = Folder(out / "results")
    with place.locked():
        begun = run.begin(place, photos, Columns(), [wanted], "parquet", 1000, {wanted.word: asked.model.card})
        scorer = Scorer([asked], cache.Cache(out / "cache", cache.PIXELS_KEY, [asked.key]), LIMITS, stall_seconds=60)
        timed = Timed(begun.left())
        try:
            await run.score(begun, scorer, timed)
        finally:
            await scorer.close()
    return timed.told()


def work() -> None:
    """Answer commands, as benchmarks.bare does."""
    answers, sys.stdout = sys.stdout, sys.stderr
    case = Case.from_environment()
    keep_freed_memory()
    task = TASKS[case.task]
    [asked] = questions.load_all([Wanted(task.name, task, case.tag, task.options(**case.options))], "cpu", None)
    for line in sys.stdin:
        with TemporaryDirectory() as out:
            told = asyncio.run(score(asked, json.loads(line)["photos"], Path(out)))
        print(json.dumps(told), file=answers, flush=True)


class Bulk:
    """Bulk scoring, in a process of its own."""

    def __init__(self, case: Case, home: Path) -> None:
        environment = {**os.environ, **OFFLINE, **case.environment(), "BENTOML_HOME": str(home)}
        command = [sys.executable, "-m", "benchmarks.bulk", "--work"]
        pipe = subprocess.PIPE
        self._process: Any = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, photos: Path) -> dict[str, float]:
        self._process.stdin.write(json.dumps({"photos": str(photos)}) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


def fill(folder: Path, picture: bytes, count: int) -> Path:
    """Write so many JPEGs that differ in a comment alone."""
    folder.mkdir()
    for index in range(count):
        comment = b"\xff\xfe\x00\x0a" + index.to_bytes(8)
        (folder / f"{index:07}.jpg").write_bytes(picture[:2] + comment + picture[2:])
    return folder


def compare(case: Case, home: Path, pictures: dict[str, bytes], rounds: int, seconds: float, place: Path) -> None:
    bare = Bare(case, place / f"{case.name}.log")
    with Bulk(case, home) as bulk:
        for name, picture in pictures.items():
            one = place / f"{name}.jpg"
            one.write_bytes(picture)
            expected = bare.ask("loop", picture=str(one), seconds=seconds / 2)["rate"]
            with TemporaryDirectory(dir=place) as folder:
                photos = fill(Path(folder) / "photos", picture, 2 * AT_ONCE + int(expected * seconds))
                pairs = [(bare.ask("loop", picture=str(one), seconds=seconds), bulk.ask(photos)) for _ in range(rounds)]
            ratios = [second["rate"] / first["rate"] for first, second in pairs]
            rates, costs = (
                [median(one[what] for one in side) for side in zip(*pairs, strict=True)] for what in ("rate", "cpu_ms")
            )
            print(
                f"{case.name}, {name}: bare {rates[0]:.1f} images/s, bulk {rates[1]:.1f}; ratio {median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f}); CPU {costs[0]:.1f} and {costs[1]:.1f} ms an image",
                flush=True,
            )
    bare.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cases", choices=("starters", "production", "all"), default="starters")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--pictures", nargs="+", choices=("small", "large"), default=["small", "large"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    if asked.work:
        work()
        return
    photos = {name: picture for name, picture in weights.pictures().items() if name in asked.pictures}
    with TemporaryDirectory() as folder:
        home, cases = Path(folder) / "bentoml", []
        if asked.cases != "production":
            cases += weights.starters(home, asked.tasks)
        if asked.cases != "starters":
            cases += weights.production(home, Path(folder), asked.tasks)
        for case in cases:
            compare(case, home, photos, asked.rounds, asked.seconds, Path(folder))


if __name__ == "__main__":
    main()
