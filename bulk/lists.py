"""The list of a run, fixed at its start: a Parquet file, of which each row group is a shard."""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bulk import UserError
from bulk.addresses import Entry
from bulk.listing import Listing
from bulk.places import Place

NAME = "_list.parquet"
"""What begins so is no part of the dataset for those who read a folder."""

PARTS, DIGEST = 256, 16
"""Files that digests of ids are sorted into, one of which is held in memory at a time; bytes of a digest."""


def write(path: Path, listing: Listing, rows: int) -> int:
    """Write a list with `rows` entries a shard; return how many entries there are. Raises UserError."""
    carried = [("carried", pa.struct(list(listing.carried)))] if len(listing.carried) else []
    schema = pa.schema([*_FIELDS, *carried])
    count, twice = 0, Twice()
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["group"]) as writer:
        while some := list(islice(listing.entries, rows)):
            count += len(some)
            if listing.ids_given:
                twice.add(entry.id for entry in some)
            writer.write_table(pa.Table.from_pylist([entry._asdict() for entry in some], schema), row_group_size=rows)
    if not count:
        skipped = ", ".join(f"{number} {suffix}" for suffix, number in listing.skipped.most_common(5))
        raise UserError(f"There are no pictures{f'; skipped: {skipped}' if skipped else ''}.")
    if digests := twice.found():
        raise UserError(f"The id {_named(path, digests)!r} is there twice.")
    return count


_FIELDS = [
    ("id", pa.string()),
    ("group", pa.string()),
    ("address", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("member", pa.string()),
]


class List:
    """A list that was written; one shard of it is in memory at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        try:
            with place.read(NAME) as file:
                self._metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{place.name}/{NAME} cannot be read: {error}") from error
        self.shards: int = self._metadata.num_row_groups
        self.entries: int = self._metadata.num_rows
        schema = self._metadata.schema.to_arrow_schema()
        self.carried: pa.DataType | None = schema.field("carried").type if "carried" in schema.names else None

    def shard(self, index: int) -> list[Entry]:
        return [Entry(**row) for row in self._read(index).to_pylist()]

    def ids(self, index: int) -> list[str]:
        ids: list[str] = self._read(index, ["id"])["id"].to_pylist()
        return ids

    def size(self, index: int) -> int:
        rows: int = self._metadata.row_group(index).num_rows
        return rows

    def _read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        with self._place.read(NAME) as file:
            return pq.ParquetFile(file, metadata=self._metadata).read_row_group(index, columns)


class Twice:
    """Finds ids that are there twice, with none of them in memory: by their digests, on disk."""

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def add(self, ids: Iterator[str]) -> None:
        self._parts = self._parts or [TemporaryFile() for _ in range(PARTS)]  # noqa: SIM115  closed in found()
        for one in ids:
            digest = _digest(one)
            self._parts[digest[0]].write(digest)

    def found(self) -> set[bytes]:
        """Return the digests of some ids that are there twice, if there are any."""
        twice: set[bytes] = set()
        for part in self._parts:
            with part:
                part.seek(0)
                digests = np.sort(np.frombuffer(part.read(), f"S{DIGEST}"))
                twice |= {bytes(one).ljust(DIGEST, b"\0") for one in digests[1:][digests[1:] == digests[:-1]][:1]}
        return twice


def _digest(one: str) -> bytes:
    return blake2b(one.encode(), digest_size=DIGEST).digest()


def _named(path: Path, digests: set[bytes]) -> str:
    ids = (one for batch in pq.ParquetFile(path).iter_batches(columns=["id"]) for one in batch["id"].to_pylist())
    return next(one for one in ids if _digest(one) in digests)
