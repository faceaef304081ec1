"""Results as `python -m bulk score` writes them, made up: for tests of what reads them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bulk.rows import schema
from vision.tasks.classification.spec import Classification
from vision.tasks.detection.spec import Detection

SCHEMA = schema({"classification": Classification, "detection": Detection}, carried=pa.struct([("town", pa.string())]))


def row(
    id: str,
    group: str | None,
    labels: Mapping[str, float] = {},
    objects: Mapping[str, float] = {},
    **others: Any,
) -> dict[str, Any]:
    """A picture of 100 x 100 pixels that could be looked at; its hash is its own."""
    quality = {"brightness": 0.5, "contrast": 0.2, "sharpness": 500.0, "hash": f"{hash_of(id):016x}"}
    made = {
        "id": id,
        "group": group,
        "uri": f"/photos/{id}.jpg",
        "width": 100,
        "height": 100,
        "status": "ok",
        "quality": quality,
        "classification": {"labels": [{"label": one, "score": score} for one, score in labels.items()]},
        "detection": {
            "objects": [{"label": one, "score": score, "box": [0, 0, 50, 50]} for one, score in objects.items()]
        },
        "carried": {"town": "Bonn"},
    }
    return {**made, **others}


def hash_of(id: str) -> int:
    """Return 64 bits far from those of other ids."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8])


def failed(id: str, group: str | None, code: str = "undecodable_image") -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("width", "height", "quality", "classification", "detection"))
    return row(id, group, **nothing, status="error", error={"code": code, "message": "The picture is broken."})


def write(folder: Path, rows: Iterable[dict[str, Any]], columns: pa.Schema = SCHEMA, shard: int = 1000) -> Path:
    """Write rows in shards, and the manifest that says what was asked."""
    folder.mkdir(parents=True, exist_ok=True)
    rest = iter(rows)
    index = 0
    while some := list(islice(rest, shard)):
        pq.write_table(pa.Table.from_pylist(some, columns), folder / f"part-{index:05}.parquet")
        index += 1
    features: dict[str, Any] = {name: {} for name in columns.names if name.startswith(("classification", "detection"))}
    (folder / "manifest.json").write_text(json.dumps({"asked": {"photos": "photos", "features": features}}))
    return folder
