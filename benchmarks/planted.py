"""Whether `bulk impact` finds an effect that was planted, with its size, and nothing where there is none.

    python -m benchmarks.planted [--draws 200] [--profiles 500]

The models see photographs of ../shared/photos once; profiles are drawn from them. Then likes are drawn again and again:
noise, and what a picture with a dog adds, 0.6 standard deviations or nothing.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from bulk.groups import Results
from bulk.impact import SUPPORT, Outcomes, collect
from bulk.signals import Signal, SignalTable, table
from bulk.statistics import LEVEL, compare
from testkit.photographs import SHARED
from testkit.servers import ROOT
from vision.insights import rules

PLANTED = Signal("detection", "dog", "any")
EFFECT = 0.6
LEAST, MOST = 3, 6
"""Pictures of a profile."""


@dataclass(frozen=True)
class Draws:
    """In how many draws the planted signal survived, with no effect any signal; and its interval held the effect."""

    times: int
    found: int
    held: int


def draw(compared: SignalTable, others: NDArray[np.float64], planted: Signal, effect: float, times: int) -> Draws:
    """Draw outcomes `times` times, and compare each with the signals. others: (groups, columns) held equal."""
    index = compared.signals.index(planted)
    has = compared.numbers[:, index].astype(float)
    found = held = 0
    for seed in range(times):
        outcome = effect * has + np.random.default_rng(seed).normal(size=len(has))
        told = compare(compared.numbers, outcome, others, seed)
        found += bool((told.q[index] if effect else told.q.min()) < LEVEL)
        held += bool(told.low[index] <= effect <= told.high[index])
    return Draws(times, found, held)


def write_profiles(path: Path, photographs: Sequence[Path], profiles: int) -> None:
    """Write a manifest: profiles of LEAST to MOST photographs, drawn with a seed."""
    random = Random(28)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "group"])
        for profile in range(profiles):
            for photograph in random.sample(photographs, random.randint(LEAST, MOST)):
                lines.writerow([photograph, f"profile{profile}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--profiles", type=int, default=500)
    arguments = parser.parse_args()
    folder = ROOT / "build" / "planted"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"{arguments.profiles}.csv"
    photographs = sorted((SHARED / "photos" / "captions" / "images").iterdir())
    write_profiles(manifest, photographs, arguments.profiles)
    out = folder / f"results-{arguments.profiles}"
    score = [sys.executable, "-m", "bulk", "score", str(manifest), "--features", "classification", "detection"]
    subprocess.run([*score, "--out", str(out)], cwd=ROOT, check=True)

    scored = Results(out, "group")
    everybody = {f"profile{profile}": (0.0,) for profile in range(arguments.profiles)}
    collected, at, _, _ = collect(scored, rules.load(rules.SHIPPED), Outcomes("likes", [], everybody, 0))
    compared = table(collected, at, SUPPORT)
    pictures = np.frombuffer(collected.pictures)[:, None]
    has = int(compared.numbers[:, compared.signals.index(PLANTED)].sum())
    print(f"{arguments.profiles} profiles, {len(compared.signals)} signals; {has} profiles with {PLANTED.name}")
    there = draw(compared, pictures, PLANTED, EFFECT, arguments.draws)
    print(f"effect {EFFECT}: found in {there.found} of {there.times}, interval holds it in {there.held}")
    nothing = draw(compared, pictures, PLANTED, 0, arguments.draws)
    print(f"effect 0: a signal survives in {nothing.found} of {nothing.times}, interval holds 0 in {nothing.held}")
    good = there.found >= 0.9 * there.times and 0.9 <= there.held / there.times <= 0.99
    sys.exit(0 if good and nothing.found <= 0.1 * nothing.times else 1)


if __name__ == "__main__":
    main()
