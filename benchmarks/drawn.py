"""python -m benchmarks.drawn [--rounds 40]: what `render=true` costs, a picture at a time to /detect of the starters.

Asks with and without it in turns, and prints the median of what a client waits, and the mean of the CPU time that all
of the service's processes took: that also tells something on a machine that has other work.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import httpx
import psutil
from PIL import Image

from testkit.photographs import PHOTOS, encoded
from testkit.servers import OFFLINE, ROOT, Served, served

SIZES = {"500 x 375": (500, 375), "12 megapixels": (4000, 3000)}

WARM = 5
"""Pairs of requests before the first that count."""


def cpu(running: Served) -> float:
    """Seconds that the service's processes have worked."""
    supervisor = psutil.Process(running.process.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (supervisor, *supervisor.children(recursive=True)))


def measured(running: Served, ask: Callable[[], Any]) -> tuple[float, float]:
    """Return what a client waits, and the CPU time, in ms."""
    start, before = perf_counter(), cpu(running)
    ask()
    return (perf_counter() - start) * 1000, (cpu(running) - before) * 1000


def row(running: Served, data: bytes, rounds: int) -> list[float]:
    """Return the cells of a row of the table."""
    with httpx.Client(base_url=running.url, timeout=300) as client:

        def ask(render: bool) -> dict[str, Any]:
            answer = client.post("/detect", files={"images": data}, data={"render": str(render).lower()})
            result: dict[str, Any] = answer.raise_for_status().json()["results"][0]
            return result

        for _ in range(WARM):
            drawn = [ask(False), ask(True)][1]
        waits, works, own = [], [], []
        for _ in range(rounds):
            without, with_it = (measured(running, partial(ask, render)) for render in (False, True))
            waits.append((without[0], with_it[0]))
            works.append((without[1], with_it[1]))
            own.append(ask(True)["ms"]["render"])
    waited = [median(column) for column in zip(*waits, strict=True)]
    worked = [mean(column) for column in zip(*works, strict=True)]  # counted in hundredths of a second
    return [*waited, *worked, worked[1] - worked[0], median(own), len(drawn["rendered"]) / 1000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args()
    with Image.open(PHOTOS["bus"]) as opened, TemporaryDirectory() as home:
        photo = opened.convert("RGB")
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": home}
        subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
        print("| picture | ms without | ms with | CPU ms without | CPU ms with | CPU ms more | `ms.render` | KB more |")
        print("|---|---|---|---|---|---|---|---|")
        with served(Path(home)) as running:
            for name, size in SIZES.items():
                data = encoded(photo.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90)
                cells = row(running, data, asked.rounds)
                print(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
