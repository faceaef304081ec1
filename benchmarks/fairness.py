"""python -m benchmarks.fairness URL PICTURE [--rounds 5] [--seconds 10]: what a busy captioner costs a classification.

One client classifies a picture, alone, and again while sixteen ask for captions without pause; in turns. Prints the
latencies of each round and the ratio of the p99s. The captions' rate is told, too: a captioner that starves is no
fair one either.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.client import Load, multipart

CAPTIONERS = 16


def client(url: str, body: Path, clients: int, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.client", url, str(body), f"--clients={clients}"]
    return subprocess.Popen([*command, f"--seconds={seconds}"], stdout=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> Load:
    output, _ = process.communicate()
    load = Load.model_validate_json(output)
    if load.failures:
        sys.exit(f"requests failed: {load.failures}")
    return load


def quantiles(ms: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.quantile(ms, (0.5, 0.99)).tolist()
    return p50, p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    ratios = []
    with TemporaryDirectory() as place:
        body = Path(place) / "body"
        body.write_bytes(multipart([asked.picture.read_bytes()], {}))
        for _ in range(asked.rounds):
            alone = quantiles(result(client(f"{asked.url}/classify", body, 1, asked.seconds)).ms)
            captions = client(f"{asked.url}/caption", body, CAPTIONERS, asked.seconds + 2)
            beside = quantiles(result(client(f"{asked.url}/classify", body, 1, asked.seconds)).ms)
            written = result(captions)
            ratios.append(beside[1] / alone[1])
            print(
                f"classify p50 / p99 alone {alone[0]:.0f} / {alone[1]:.0f} ms, beside {CAPTIONERS} captioning clients "
                f"{beside[0]:.0f} / {beside[1]:.0f} ms ({ratios[-1]:.1f}x); {len(written.ms) / written.seconds:.1f} "
                "captions/s"
            )
    print(f"median ratio of the p99s: {median(ratios):.2f}")


if __name__ == "__main__":
    main()
