"""python -m benchmarks.listing [--pictures 10000000]: what listing a table takes, in time and in memory.

A table with ids and a carried column is listed into shards of 1,000, its ids are checked, and the list is read through,
for a tenth of the pictures and for all, each in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bulk import lists
from bulk.listing import Columns, listing
from bulk.places import Folder
from testkit.servers import ROOT

SHARD = 1000


def measure(table: Path, place: Path) -> None:
    start = perf_counter()
    count = lists.write(place / lists.NAME, listing(str(table), Columns()), SHARD)
    listed = perf_counter()
    found = lists.List(Folder(place))
    for index in range(found.shards):
        found.shard(index)
    seconds, read = listed - start, perf_counter() - listed
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    size = (place / lists.NAME).stat().st_size / 1e6
    print(
        f"{count:,} pictures: listed in {seconds:.0f} s, read in {read:.0f} s, list {size:.0f} MB, peak {memory:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000_000)
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        measure(asked.table, asked.table.parent)
        return
    for count in (asked.pictures // 10, asked.pictures):
        with TemporaryDirectory() as place:
            table = Path(place) / "photos.csv"
            with table.open("w") as file:
                file.write("id,path,likes\n")
                file.writelines(
                    f"photo-{index:09},{index // 1000:06}/{index:09}.jpg,{index % 97}\n" for index in range(count)
                )
            subprocess.run([sys.executable, "-m", "benchmarks.listing", "--table", table], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
