"""A row: what is known of one picture. Typed and nested as the endpoints answer, one column a feature."""

import io
import json
import types
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from bulk import UserError
from bulk.places import Place
from vision.core.schemas import Quality

MANIFEST = "manifest.json"
"""Beside the shards: what was asked, when, by which versions, where."""

Row = dict[str, Any]

_SIMPLE = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema(results: Mapping[str, type[BaseModel]], carried: pa.DataType | None) -> pa.Schema:
    """Return the dataset's schema: results are the features' words and result classes."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        ("group", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.struct([("code", pa.string()), ("message", pa.string())])),
        ("quality", as_arrow(Quality)),
        ("ms", pa.float64()),
        *((word, as_arrow(result)) for word, result in results.items()),
    ]
    return pa.schema([*fields, *([("carried", carried)] if carried else [])])


def as_arrow(kind: Any) -> pa.DataType:
    """Return Arrow's type for a field of our contract."""
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return pa.string()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return pa.struct([(name, as_arrow(field.annotation)) for name, field in kind.model_fields.items()])
    origin, inner = get_origin(kind), [one for one in get_args(kind) if one is not type(None)]
    if origin in (list, tuple, Annotated, Union, types.UnionType) and (len(set(inner)) == 1 or origin is Annotated):
        within = as_arrow(inner[0])
        return pa.list_(within) if origin in (list, tuple) else within
    raise TypeError(f"{kind} has no column type yet")


class Parquet:
    """Shards as Parquet files: typed columns that any tool reads."""

    suffix = "parquet"

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def encode(self, rows: Sequence[Row]) -> bytes:
        out = io.BytesIO()
        table = pa.Table.from_pylist(list(rows), self._schema)
        pq.write_table(table, out, compression="zstd", write_page_checksum=True)
        return out.getvalue()

    def decode(self, file: Any, columns: Sequence[str] | None = None) -> list[Row]:
        """Read a shard again. Raises ValueError where it is damaged."""
        try:
            rows: list[Row] = pq.read_table(file, columns=columns, page_checksum_verification=True).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from error
        return rows


class JsonLines:
    """Shards as JSON, a row a line."""

    suffix = "jsonl"

    def __init__(self, schema: pa.Schema) -> None:
        self._names = schema.names

    def encode(self, rows: Sequence[Row]) -> bytes:
        lines = (json.dumps({name: row.get(name) for name in self._names}, default=str) + "\n" for row in rows)
        return "".join(lines).encode()

    def decode(self, file: Any, columns: Sequence[str] | None = None) -> list[Row]:
        data: bytes = file.read()
        if not data.endswith(b"\n"):
            raise ValueError("its last line ends early")
        rows: list[Row] = [json.loads(line) for line in data.splitlines()]
        return [{name: row[name] for name in columns} for row in rows] if columns else rows


Format = Parquet | JsonLines
FORMATS: dict[str, type[Parquet] | type[JsonLines]] = {"parquet": Parquet, "jsonl": JsonLines}


def part(index: int, format: Format) -> str:
    return f"part-{index:05}.{format.suffix}"


def read(place: Place, index: int, format: Format, ids: Sequence[str], columns: Sequence[str] | None) -> list[Row]:
    """Read a shard that must hold these ids. Raises UserError where it does not."""
    name = part(index, format)
    way_out = "Remove that file, and the same command scores it again."
    try:
        with place.read(name) as file:
            rows = format.decode(file, columns)
    except ValueError as error:
        raise UserError(f"{place.name}/{name} is damaged ({error}). {way_out}") from error
    if [row["id"] for row in rows] != list(ids):
        raise UserError(f"{place.name}/{name} holds other pictures than the list. {way_out}")
    return rows
