"""What the pictures of each group show together: the insights of POST /insights, over a scored collection."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.groups import Results
from bulk.rows import as_arrow
from vision.insights.profile import Insights, insights
from vision.insights.rules import Rules

ROW_GROUP = 10_000
"""Groups in a row group of the file; what the file says of each of these stays in memory until its end."""
AT_ONCE = 200
"""Groups that are Python's objects at once: each takes ten times what it takes in Arrow."""

SCHEMA = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        ("ids", pa.list_(pa.string())),
        *as_arrow(Insights),
    ]
)
"""A row a group: its name, its pictures' ids in their order, and vision.insights.profile.Insights."""


def write(results: Results, rules: Rules, min_score: float, out: Path) -> int:
    """Write a row for each group to `out`, whole or not at all; return how many. Memory does not grow with them."""
    rules = results.rules(rules)
    new, count = out.with_name(f"_{out.name}.new"), 0
    tables = _tables(_rows(results, rules, min_score))
    try:
        with pq.ParquetWriter(new, SCHEMA, compression="zstd") as writer:
            while some := list(islice(tables, ROW_GROUP // AT_ONCE)):
                writer.write_table(table := pa.concat_tables(some))
                count += len(table)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return count


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    while some := list(islice(rows, AT_ONCE)):
        yield pa.Table.from_pylist(some, SCHEMA)


def _rows(results: Results, rules: Rules, min_score: float) -> Iterator[dict[str, Any]]:
    for group, shown in results.groups():
        found = insights([one.picture for one in shown], rules, min_score)
        yield {"group": group, "ids": [one.id for one in shown], **found.model_dump()}
