"""python -m benchmarks.turns BEFORE AFTER PICTURE [--endpoints …] [--clients …]: two trees of this service, in turns.

BEFORE and AFTER are checkouts; each serves the starters from a store of its own, in this environment. Both run all the
time; the loads alternate. Prints, for each endpoint and number of clients, images/s of both, the median of the rounds'
ratios with their range, and the memory of all processes at the end, shared pages once.
"""

import argparse
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import psutil

from benchmarks.client import multipart
from benchmarks.fairness import client, result
from testkit.servers import OFFLINE, SERVE, Served, served


def rate(url: str, body: Path, clients: int, seconds: float) -> float:
    load = result(client(url, body, clients, seconds))
    return len(load.ms) / load.seconds


def memory(running: Served) -> float:
    """Megabytes of all processes, each shared page's part for each that has it."""
    supervisor = psutil.Process(running.process.pid)
    return sum(one.memory_full_info().pss for one in (supervisor, *supervisor.children(recursive=True))) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--endpoints", nargs="+", default=["/classify", "/analyze"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    trees = {"before": asked.before.absolute(), "after": asked.after.absolute()}
    with TemporaryDirectory() as place:
        body = Path(place) / "body"
        body.write_bytes(multipart([asked.picture.read_bytes()], {}))
        homes = {name: Path(place) / name for name in trees}
        for name, tree in trees.items():
            environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(homes[name])}
            subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=tree, env=environment, check=True)
        commands = {name: ["env", "-C", str(tree), *SERVE] for name, tree in trees.items()}
        start = perf_counter()
        with served(homes["before"], commands["before"]) as before:
            middle = perf_counter()
            with served(homes["after"], commands["after"]) as after:
                print(f"start to ready: {middle - start:.1f} and {perf_counter() - middle:.1f} s", flush=True)
                for endpoint, clients in product(asked.endpoints, asked.clients):
                    compare(before, after, endpoint, clients, body, asked.rounds, asked.seconds)
                print(f"memory: {memory(before):.0f} and {memory(after):.0f} MB")


def compare(
    before: Served, after: Served, endpoint: str, clients: int, body: Path, rounds: int, seconds: float
) -> None:
    pairs = []
    for turn in range(rounds + 1):
        rates = [rate(one.url + endpoint, body, clients, seconds if turn else 2) for one in (before, after)]
        if turn:  # the first warms up
            pairs.append(rates)
    ratios = [second / first for first, second in pairs]
    first, second = (median(rates) for rates in zip(*pairs, strict=True))
    print(
        f"{endpoint}, {clients} clients: {first:.1f} and {second:.1f} images/s; "
        f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
