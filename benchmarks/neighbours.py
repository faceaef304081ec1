"""python -m benchmarks.neighbours PICTURE [--rounds 5] [--seconds 10]: what models cost that share a runner.

The starter classifier under three names, each asked by eight clients; in turns with one of them asked by twenty-four.
Prints images/s of both, round by round, and the median of the rounds' ratios.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.client import multipart
from benchmarks.fairness import client, result
from testkit.copies import save_copy
from testkit.servers import OFFLINE, ROOT, serve

NAMES = ("efficientnet-lite0", "second", "third")


def rate(url: str, bodies: list[Path], clients: int, seconds: float) -> float:
    """Images/s of all bodies together, each sent by so many clients."""
    loads = [result(one) for one in [client(f"{url}/classify", body, clients, seconds) for body in bodies]]
    return sum(len(load.ms) / load.seconds for load in loads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        home = Path(place) / "home"
        environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home)}
        subprocess.run([sys.executable, "-m", "train_and_save", "starter"], cwd=ROOT, env=environment, check=True)
        for name in NAMES[1:]:
            save_copy(home, name)
        bodies = [Path(place) / name for name in NAMES]
        for body in bodies:
            body.write_bytes(multipart([asked.picture.read_bytes()], {"model": body.name}))
        with serve(home, VISION_CLASSIFICATION_MODEL=",".join(NAMES)) as url:
            rate(url, bodies, 8, asked.seconds / 2)
            ratios = []
            for _ in range(asked.rounds):
                three, one = rate(url, bodies, 8, asked.seconds), rate(url, bodies[:1], 24, asked.seconds)
                ratios.append(three / one)
                print(f"three models {three:.1f}, one {one:.1f} images/s: {three / one:.3f}", flush=True)
        print(f"median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
