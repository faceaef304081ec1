"""The list of a run, fixed at its start: an Arrow file, of which each batch is a shard.

Of Parquet, writers and readers hold ten kilobytes a row group; of Arrow, 24 bytes a batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa

from bulk import UserError
from bulk.addresses import Entry
from bulk.listing import Listing
from bulk.places import Place

NAME = "_list.arrow"
"""What begins so is no part of the dataset for those who read a folder."""

PARTS, DIGEST = 256, 16
"""Files that digests of ids are sorted into, one of which is held in memory at a time; bytes of a digest."""


def write(path: Path, listing: Listing, rows: int) -> int:
    """Write a list with `rows` entries a shard; return how many entries there are. Raises UserError."""
    carried = [("carried", pa.struct(list(listing.carried)))] if len(listing.carried) else []
    schema = pa.schema([*_FIELDS, *carried])
    count, twice = 0, Twice()
    with pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        while some := list(islice(listing.entries, rows)):
            count += len(some)
            if listing.ids_given:
                twice.add(entry.id for entry in some)
            writer.write_batch(pa.RecordBatch.from_pylist([entry._asdict() for entry in some], schema))
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
            with self._open() as reader:
                schema, self.shards = reader.schema, int(reader.num_record_batches)
                first, last = reader.get_batch(0).num_rows, reader.get_batch(self.shards - 1).num_rows
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{place.name}/{NAME} cannot be read: {error}") from error
        self._rows, self._last = int(first), int(last)
        self.carried: pa.DataType | None = schema.field("carried").type if "carried" in schema.names else None

    @property
    def entries(self) -> int:
        return (self.shards - 1) * self._rows + self._last

    def shard(self, index: int) -> list[Entry]:
        return [Entry(**row) for row in self._read(index).to_pylist()]

    def ids(self, index: int) -> list[str]:
        ids: list[str] = self._read(index)["id"].to_pylist()
        return ids

    def size(self, index: int) -> int:
        return self._last if index == self.shards - 1 else self._rows

    def _read(self, index: int) -> pa.RecordBatch:
        with self._open() as reader:
            return reader.get_batch(index)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with self._place.read(NAME) as file, pa.ipc.open_file(file) as reader:
            yield reader


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
    with pa.ipc.open_file(str(path)) as reader:
        batches = map(reader.get_batch, range(reader.num_record_batches))
        return next(one for batch in batches for one in batch["id"].to_pylist() if _digest(one) in digests)
