"""python -m benchmarks.plan PHOTOS [--sample 500]: what `bulk plan` says of a collection beside a full run of it.

Both run as a user would, with the models of the store; the full run keeps no cache. Prints both rates, and how far the
estimate lies from the run.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from testkit.servers import ROOT


def rate(command: list[str], pattern: str) -> float:
    """Run a command of bulk; return the pictures a second that it tells."""
    run = subprocess.run(
        [sys.executable, "-m", "bulk", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found = re.search(pattern, run.stdout)
    if not found:
        raise ValueError(f"It tells no rate: {run.stdout}")
    return float(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--sample", default="500")
    parser.add_argument("--features", nargs="+", default=[])
    asked = parser.parse_args()
    photos = str(asked.photos.absolute())
    features = ["--features", *asked.features] if asked.features else []
    planned = rate(["plan", photos, "--sample", asked.sample, *features], r"([\d,.]+) pictures/s on this machine")
    with TemporaryDirectory() as out:
        seen = rate(["score", photos, "--no-cache", "--out", out, *features], r"([\d,.]+)/s;")
    print(f"planned {planned:.1f} pictures/s, seen {seen:.1f}: {planned / seen - 1:+.1%}")


if __name__ == "__main__":
    main()
