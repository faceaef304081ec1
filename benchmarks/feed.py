"""python -m benchmarks.feed [--seconds 5] [--rounds 3]: what it costs to feed a GPU, by null models in its place.

The service runs with models that sleep for as long as a card works and take no CPU (`servers/feed_server.py`). Clients
send JPEGs of 0.1 MB, and BMPs of the network's size, one and sixteen a request. Prints CPU milliseconds an image of the
public processes and of the runner, what remains over decoding (measured alone, in one thread), and with `--workers` 2
and 1 what several public processes cost, and how much of the cores they make images of. A table and JSON at the end.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil

from benchmarks.gpu import MANY, bodies, cpu_seconds, load_on
from testkit.servers import OFFLINE, ROOT, SERVE, served

CLIENTS = {1: 32, MANY: 6}
"""By pictures in a request: enough that no part waits for the client."""

TARGETS = {1: 1.2, MANY: 0.7}
"""CPU milliseconds an image over decoding, at most; by pictures in a request."""


def decoding(body: Path, home: Path, seconds: float = 2) -> float:
    """Return CPU milliseconds of decoding a body's picture and making the model's pixels of it, alone."""
    os.environ["BENTOML_HOME"] = str(home)
    from vision.bento import store
    from vision.core import images
    from vision.core.look import show
    from vision.tasks import TASKS

    task = TASKS["classification"]
    shrinks = {task.name: task.load_shrink(store.folder(task.starter))}
    data = body.read_bytes().split(b"\r\n\r\n", 1)[1].split(b"\r\n--picture", 1)[0]
    times, end = [], perf_counter() + seconds
    while perf_counter() < end:
        start = process_time()
        for _ in range(20):
            show(shrinks, *images.decode_reduced(data))
        times.append((process_time() - start) / 20 * 1000)
    return median(times)


def ask(url: str, body: Path, count: int, seconds: float, server: psutil.Process) -> dict[str, float]:
    """Return images/s and CPU milliseconds an image, by Service and of the client."""
    before = cpu_seconds(server)
    load = load_on(url, body, clients=CLIENTS[count], seconds=seconds)
    if load.failures or not load.ms:
        sys.exit(f"requests failed: {load.failures}")
    images = len(load.ms) * count
    spent = {name: (one - before[name]) / images * 1000 for name, one in cpu_seconds(server).items()}
    return {
        "images/s": images / load.seconds,
        "public": spent["vision"],
        "runner": spent["classification"],
        "client": load.client_cpu * load.seconds / images * 1000,
    }


def measure(home: Path, made: dict[str, Path], workers: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the medians of the rounds for each kind of request."""
    command = (*SERVE[:2], "benchmarks.servers.feed_server:Vision", *SERVE[2:])
    settings = {"VISION_WORKERS": str(workers), "VISION_DEVICE": "cpu", "VISION_MAX_IN_FLIGHT": "1024"}
    with served(home, command, **settings) as running:
        server, url = psutil.Process(running.process.pid), f"{running.url}/classify"
        found: dict[str, list[dict[str, float]]] = {name: [] for name in made}
        for turn in range(rounds + 1):
            for name, body in made.items():
                one = ask(url, body, int(name.rpartition(" ")[2]), seconds if turn else 1, server)
                if turn:  # the first warms up
                    found[name].append(one)
    return {name: {key: median(one[key] for one in all_) for key in all_[0]} for name, all_ in found.items()}


def table(found: dict[int, dict[str, dict[str, float]]], decode: dict[str, float]) -> list[dict[str, Any]]:
    cores, rows = os.cpu_count() or 1, []
    for workers, kinds in found.items():
        for name, one in kinds.items():
            over = one["public"] + one["runner"] - decode[name]
            everything = one["public"] + one["runner"] + one["client"]
            row = {
                "workers": workers,
                "request": name,
                **one,
                "decoding": decode[name],
                "over decoding": over,
                "of the cores": one["images/s"] * everything / 1000 / cores,
            }
            if first := found.get(1):
                row["CPU of one worker's"] = (one["public"] + one["runner"]) / (
                    first[name]["public"] + first[name]["runner"]
                )
            rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--home", type=Path, help="a BENTOML_HOME that has the starters; else they are saved anew")
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        home = asked.home or Path(place) / "home"
        if not asked.home:
            environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
            subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
        made = bodies(Path(place))
        decode = {name: decoding(body, home) for name, body in made.items()}
        found = {count: measure(home, made, count, asked.rounds, asked.seconds) for count in asked.workers}
    rows = table(found, decode)
    print("  ".join(f"{name:>13}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>13}" for value in row.values()))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
