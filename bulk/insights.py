"""What the pictures of each group show together: the insights of POST /insights, over a scored collection."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.groups import Results
from vision.insights.profile import insights
from vision.insights.rules import Rules

AT_ONCE = 1_000
"""Groups in a row group of the file."""

_INDICES = pa.list_(pa.int32())
_BOX = pa.list_(pa.float64())
_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
_EVIDENCE = pa.struct([("picture", pa.int32()), ("score", pa.float64()), ("box", _BOX)])
_SIGHTING = pa.struct(
    [
        ("feature", pa.string()),
        ("label", pa.string()),
        ("pictures", pa.int32()),
        ("share", pa.float64()),
        ("any", pa.bool_()),
        ("all", pa.bool_()),
        ("evidence", pa.list_(_EVIDENCE)),
    ]
)
_PEOPLE = pa.struct([("counts", _INDICES), ("pictures", pa.int32()), ("most", pa.int32())])
_SUBJECT = pa.struct(
    [
        ("boxes", pa.list_(_BOX)),
        ("sunglasses", pa.list_(pa.bool_())),
        ("ever_without_sunglasses", pa.bool_()),
    ]
)
_QUALITY = pa.struct(
    [*((name, pa.float64()) for name in ("brightness", "contrast", "sharpness")), ("hash", pa.string())]
)
_TIP = pa.struct([(name, pa.string()) for name in ("id", "severity", "text")] + [("pictures", _INDICES)])

SCHEMA = pa.schema(
    [
        pa.field("group", pa.string(), nullable=False),
        ("ids", pa.list_(pa.string())),
        ("pictures", pa.int32()),
        ("answered", pa.int32()),
        ("seen", pa.list_(_SIGHTING)),
        ("people", _PEOPLE),
        ("main_subject", _SUBJECT),
        ("quality", pa.list_(_QUALITY)),
        ("near_duplicates", pa.list_(_INDICES)),
        ("failed", pa.list_(pa.struct([("picture", pa.int32()), ("error", _ERROR)]))),
        ("tips", pa.list_(_TIP)),
    ]
)
"""A row a group: its name, its pictures' ids in their order, and vision.insights.profile.Insights."""


def write(results: Results, rules: Rules, min_score: float, out: Path) -> int:
    """Write a row for each group to `out`, whole or not at all; return how many. Memory does not grow with them."""
    rules = results.rules(rules)
    new, count = out.with_name(f"_{out.name}.new"), 0
    rows = _rows(results, rules, min_score)
    try:
        with pq.ParquetWriter(new, SCHEMA, compression="zstd") as writer:
            while some := list(islice(rows, AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(some, SCHEMA))
                count += len(some)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return count


def _rows(results: Results, rules: Rules, min_score: float) -> Iterator[dict[str, Any]]:
    for group, shown in results.groups():
        found = insights([one.picture for one in shown], rules, min_score)
        yield {"group": group, "ids": [one.id for one in shown], **found.model_dump(mode="json")}
