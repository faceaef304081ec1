"""What insights of a large collection take: `python -m bulk insights` over made-up results, in time and in memory."""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from testkit import results
from testkit.servers import ROOT

PICTURES = 3
"""Of a profile."""

SHARD = 3_000
"""Rows of a file. Those of the first are drawn; the others have the same signals in other profiles."""

SORT = """
import sys
from itertools import islice
from pathlib import Path
from bulk.groups import Results
print(sum(1 for _ in islice(Results(Path(sys.argv[1]), "group").groups(), 20_000)))
"""

LABELS = [f"label {number}" for number in range(1000)]
OBJECTS = ["person", "dog", "car", "cup", "chair"]


def drawn(seed: int = 28) -> Iterator[dict[str, Any]]:
    """Rows with five labels, and up to six objects, as the starters find."""
    choose = random.Random(seed)
    for number in range(SHARD):
        labels = {label: choose.random() for label in choose.sample(LABELS, 5)}
        objects = {label: choose.random() for label in choose.sample(OBJECTS, choose.randrange(6))}
        yield results.row(str(number), "", labels, objects)


def write(folder: Path, profiles: int) -> None:
    """Write results in which a profile's pictures lie far apart, and no profile beside its neighbour by name."""
    results.write(folder, drawn(), shard=SHARD)
    first = folder / "part-00000.parquet"
    table = pq.read_table(first)
    order = ((number * 7_919) % profiles for _ in range(PICTURES) for number in range(profiles))
    for shard in range(-(-profiles * PICTURES // SHARD)):
        names = [f"g{number:09}" for number in islice(order, SHARD)]
        new = table.slice(0, len(names))
        ids = [f"{shard}-{number}" for number in range(len(names))]
        for column, values in (("id", ids), ("group", names)):
            index = new.schema.get_field_index(column)
            new = new.set_column(index, new.schema.field(index), pa.array(values, pa.string()))
        pq.write_table(new, folder / f"part-{shard:05}.parquet", compression="zstd")


def measure(profiles: int, sorts_only: bool) -> list[float]:
    """Return a row of the table."""
    with TemporaryDirectory(prefix="results-") as place:
        folder = Path(place)
        write(folder, profiles)
        size = sum(file.stat().st_size for file in folder.iterdir())
        start = perf_counter()
        command = ["-c", SORT, place] if sorts_only else ["-m", "bulk", "insights", place, "--by", "group"]
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)  # tells what this child used, and no other
        process.returncode = os.waitstatus_to_exitcode(status)
        took = perf_counter() - start
        if process.returncode:
            sys.exit(f"{profiles:,} profiles ended with status {process.returncode}.")
        if not sorts_only:
            [out] = folder.glob("insights-*.parquet")
            if (count := pq.read_metadata(out).num_rows) != profiles:
                sys.exit(f"{count:,} of {profiles:,} profiles came out.")
        most = used.ru_maxrss * 1024 / 1e6
        return [profiles, profiles * PICTURES, size / 1e6, took, used.ru_utime + used.ru_stime, most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", type=int, nargs="+", help="how many, one or more numbers")
    parser.add_argument("--sort", action="store_true", help="only sort all rows, and read the first 20,000 groups")
    asked = parser.parse_args()
    print("| profiles | pictures | results MB | seconds | CPU seconds | most memory MB |")
    print("|---|---|---|---|---|---|")
    for profiles in asked.profiles:
        print(f"| {' | '.join(f'{cell:,.0f}' for cell in measure(profiles, asked.sort))} |", flush=True)


if __name__ == "__main__":
    main()
