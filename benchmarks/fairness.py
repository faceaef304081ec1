"""python -m benchmarks.fairness URL PICTURE [--rounds 5] [--seconds 10]: what others cost a client with one picture.

One client asks about a picture, alone, and again beside others that never pause; in turns. The others are sixteen that
want captions, or two that send sixteen pictures a request to the same endpoint. Prints the latencies, the ratio of the
p99s round by round, and what the others got: who starves is not treated fairly either.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.client import Load, multipart


class Others(NamedTuple):
    endpoint: str
    clients: int
    pictures: int
    """In a request."""


LOADS = [
    ("/classify", Others("/caption", clients=16, pictures=1)),
    ("/classify", Others("/classify", clients=2, pictures=16)),
    ("/caption", Others("/caption", clients=2, pictures=16)),
    ("/detect", Others("/detect", clients=2, pictures=16)),
]


def client(url: str, body: Path, clients: int, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.client", url, str(body), f"--clients={clients}"]
    return subprocess.Popen([*command, f"--seconds={seconds}"], stdout=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> Load:
    output, _ = process.communicate()
    load = Load.model_validate_json(output)
    if load.failures:
        sys.exit(f"requests failed: {load.failures}")
    return load


def measure(url: str, endpoint: str, others: Others, bodies: dict[int, Path], rounds: int, seconds: float) -> None:
    quantiles, rates = [], []
    for _ in range(rounds):
        alone = result(client(url + endpoint, bodies[1], 1, seconds))
        busy = client(url + others.endpoint, bodies[others.pictures], others.clients, seconds + 2)
        beside = result(client(url + endpoint, bodies[1], 1, seconds))
        got = result(busy)
        quantiles.append([*np.quantile(alone.ms, (0.5, 0.99)), *np.quantile(beside.ms, (0.5, 0.99))])
        rates.append(len(got.ms) * others.pictures / got.seconds)
    p50, p99, p50_beside, p99_beside = np.median(quantiles, axis=0).tolist()
    ratios = [one[3] / one[1] for one in quantiles]
    print(
        f"{endpoint}: p50 / p99 {p50:.0f} / {p99:.0f} ms alone, {p50_beside:.0f} / {p99_beside:.0f} beside "
        f"{others.clients} clients with {others.pictures} a request at {others.endpoint}, which got "
        f"{median(rates):.1f} images/s; p99s {median(ratios):.1f}x ({' '.join(f'{ratio:.1f}' for ratio in ratios)})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        bodies = {count: Path(place) / str(count) for count in (1, 16)}
        for count, body in bodies.items():
            body.write_bytes(multipart([asked.picture.read_bytes()] * count, {}))
        for endpoint, others in LOADS:
            measure(asked.url, endpoint, others, bodies, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
