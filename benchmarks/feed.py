"""python -m benchmarks.feed [--seconds 5] [--rounds 3]: what it costs to feed a GPU, by null models in its place.

The service runs with models that sleep for as long as a card works and take no CPU (`servers/feed_server.py`). Clients
send JPEGs of 0.1 MB, and BMPs of the network's size, one and sixteen a request. Prints CPU milliseconds an image of the
public processes, the runner and the client, what remains over decoding (measured alone, in one thread), the share of
the cores that was busy with it, and the CPU of several public processes over that of one.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import psutil

from benchmarks.gpu import MANY, bodies, cpu_seconds, load_on, photographs
from testkit.photographs import encoded
from testkit.servers import OFFLINE, ROOT, SERVE, served

CLIENTS = {1: 32, MANY: 6}
"""By pictures in a request: enough that no part waits for the client."""

TARGETS = {1: 1.2, MANY: 0.7}
"""CPU milliseconds an image over decoding, at most; by pictures in a request."""


class Decoding:
    """Decodes pictures as the service and bulk do, and makes the classifier's pixels of them."""

    def __init__(self, home: Path) -> None:
        os.environ["BENTOML_HOME"] = str(home)
        from vision.bento import store
        from vision.core import images, look
        from vision.core.decoders import keep_freed_memory
        from vision.tasks import TASKS

        keep_freed_memory()
        task = TASKS["classification"]
        self._shrinks = {task.name: task.load_shrink(store.folder(task.starter))}
        self._decode, self._show = images.decode_reduced, look.show

    def __call__(self, data: bytes) -> object:
        return self._show(self._shrinks, *self._decode(data))

    def cpu_ms(self, body: Path, seconds: float = 2) -> float:
        """Return CPU milliseconds for a body's picture, alone."""
        data = body.read_bytes().split(b"\r\n\r\n", 1)[1].split(b"\r\n--picture", 1)[0]
        times, end = [], perf_counter() + seconds
        while perf_counter() < end:
            start = process_time()
            for _ in range(20):
                self(data)
            times.append((process_time() - start) / 20 * 1000)
        return median(times)


OF_PROCESS: list[Decoding] = []


def start_process(home: Path) -> None:
    OF_PROCESS.append(Decoding(home))


def decode(data: bytes) -> object:
    return OF_PROCESS[0](data)


def threads_and_processes(home: Path, seconds: float) -> None:
    """Print how many JPEGs of 0.1 MB a second one thread decodes, a thread a core, and a process a core."""
    jpegs = [encoded(photo.resize((500, 375)), "JPEG", quality=92) for photo in photographs(64)]
    cores = len(os.sched_getaffinity(0))
    spawned = get_context("spawn")
    own = Decoding(home)
    with (
        ThreadPoolExecutor(1) as one,
        ThreadPoolExecutor(cores) as threads,
        ProcessPoolExecutor(cores, spawned, start_process, (home,)) as processes,
    ):
        list(processes.map(decode, jpegs))
        for _ in range(3):
            rates = []
            for pool, work in ((one, own), (threads, own), (processes, decode)):
                start, count = perf_counter(), 0
                while perf_counter() < start + seconds:
                    count += sum(1 for _ in pool.map(work, jpegs))
                rates.append(f"{count / (perf_counter() - start):.0f}")
            print(f"decoded a second: 1 thread {rates[0]}, {cores} threads {rates[1]}, {cores} processes {rates[2]}")


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


Figures = dict[str, dict[str, float]]
"""By kind of request."""


def measure(home: Path, made: dict[str, Path], workers: int, rounds: int, seconds: float) -> Figures:
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


def table(found: dict[int, Figures], decoding: dict[str, float]) -> list[dict[str, Any]]:
    cores, rows = os.cpu_count() or 1, []
    for workers, kinds in found.items():
        for name, one in kinds.items():
            over = one["public"] + one["runner"] - decoding[name]
            everything = one["public"] + one["runner"] + one["client"]
            row = {
                "workers": workers,
                "request": name,
                **one,
                "decoding": decoding[name],
                "over decoding": over,
                "of the cores": one["images/s"] * everything / 1000 / cores,
            }
            if first := found.get(1, {}).get(name):
                row["of one worker"] = (one["public"] + one["runner"]) / (first["public"] + first["runner"])
            row["at most"] = TARGETS[int(name.rpartition(" ")[2])]
            rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--decoding", action="store_true", help="only compare threads and processes that decode")
    parser.add_argument("--home", type=Path, help="a BENTOML_HOME that has the starters; else they are saved anew")
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        home = asked.home or Path(place) / "home"
        if not asked.home:
            environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
            subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
        if asked.decoding:
            threads_and_processes(home, asked.seconds)
            return
        made = bodies(Path(place))
        own = Decoding(home)
        decoding = {name: own.cpu_ms(body) for name, body in made.items()}
        found = {count: measure(home, made, count, asked.rounds, asked.seconds) for count in asked.workers}
    rows = table(found, decoding)
    print("  ".join(f"{name:>13}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>13}" for value in row.values()))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
