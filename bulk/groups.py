"""Results of a scored collection, a group at a time, however many there are: sorted on the disk, not in memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from bulk import UserError
from bulk.rows import MANIFEST
from vision.core.errors import Code, VisionError
from vision.core.schemas import Failure, Quality
from vision.insights.pictures import QUALITY, Picture
from vision.insights.rules import LEAST_LABEL, LEAST_OBJECT, Rules

Kind = Literal["labels", "caption", "objects"]
"""Of an answer: the name of its field that says what was seen."""
KINDS: tuple[Kind, ...] = get_args(Kind)

ALWAYS = ("classification", "detection", QUALITY)
BESIDE = ("id", "uri", "width", "height", "status", "error")
MEMORY = "512MB"
"""What DuckDB takes at most; the rest goes to the disk."""
ROWS = 2_000
"""Held at once."""
MOST = 5_000
"""Pictures of a group: each is compared with each."""


@dataclass(frozen=True)
class Shown:
    """A picture of a group: its row's id and address, and what was seen in it."""

    id: str
    uri: str
    picture: Picture


class Results:
    """A folder of results that `python -m bulk score` wrote."""

    def __init__(self, folder: Path, by: str = "group") -> None:
        """`by` names the column that groups pictures, of ours or carried. Raises UserError."""
        self.parts = parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            there = "is no folder" if not folder.is_dir() else "holds no part-*.parquet"
            raise UserError(f"{folder} {there}: name a local folder that `python -m bulk score` wrote as Parquet.")
        self.folder, self.by = folder, by
        try:
            self.schema: pa.Schema = pq.read_schema(parts[0])
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            self.asked: dict[str, Any] = self.manifest["asked"]
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} cannot be read: {error}") from error
        self._by, self._holds_by = self._column(by)

    def _column(self, by: str) -> tuple[str, str]:
        """Return what names it in a query, and the column that holds it."""
        carried = self.schema.field("carried").type if "carried" in self.schema.names else pa.struct([])
        inside = _names(carried)
        if by in inside:
            return f"carried.{quoted(by)}", "carried"
        if by in self.schema.names and not pa.types.is_nested(self.schema.field(by).type):
            return quoted(by), by
        known = ", ".join(["group", *inside])
        raise UserError(f"{self.folder} has no column {by!r} to group by; it has {known}.")

    @property
    def kinds(self) -> dict[str, Kind]:
        """The features that these rows hold, by their words, and what kind of answer each is."""
        answers = [field for field in self.schema if pa.types.is_struct(field.type) and "model" in _names(field.type)]
        return {one.name: kind for one in answers for kind in KINDS if kind in _names(one.type)}

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield rows in their order. Raises UserError where a file is damaged."""
        for batch in self._batches(columns):
            yield from batch.to_pylist()

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for part in self.parts:
            try:
                with pq.ParquetFile(part, page_checksum_verification=True) as file:
                    yield from file.iter_batches(ROWS, columns=columns)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{part} is damaged ({error}): remove it, and score again.") from error

    @contextmanager
    def connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a DuckDB whose view `rows` is these rows; what does not fit into MEMORY goes to the disk.

        Raises UserError where a file turns out to be damaged.
        """
        with TemporaryDirectory(prefix="groups-") as spill, duckdb.connect() as connection:
            connection.execute(f"SET memory_limit = '{MEMORY}'; SET temp_directory = '{spill}'")
            self.view(connection, "rows")
            try:
                yield connection
            except (duckdb.IOException, duckdb.InvalidInputException) as error:
                told, *_ = str(error).splitlines()[0].split(". Detail: Python exception")
                raise UserError(f"{self.folder} is damaged: {told}") from error

    def view(self, connection: duckdb.DuckDBPyConnection, name: str) -> None:
        """Let a connection know these rows by a name."""
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {self._rows()}")  # noqa: S608

    def ask(self, connection: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
        """Return what a query over `rows` finds."""
        return connection.execute(query).fetchall()

    def rules(self, rules: Rules) -> Rules:
        """Return the rules that these rows can be judged by. Raises UserError where a signal lacks."""
        sunglasses = rules.sunglasses
        if sunglasses and sunglasses.where_served and sunglasses.feature not in self.schema.names:
            rules = rules.without_sunglasses()
        needed = {**dict.fromkeys(ALWAYS, "every profile"), **rules.features}
        if lacking := {feature: who for feature, who in needed.items() if feature not in self.schema.names}:
            features = " ".join({**self.asked["features"], **{name: None for name in lacking if name != QUALITY}})
            [feature, who], *_ = lacking.items()
            raise UserError(
                f"{self.folder} lacks {feature}, which {who} needs. Score again with it, into another folder: "
                f"python -m bulk score {self.asked['photos']} --features {features} --out OUT"
            )
        for feature in needed:
            self._check_options(feature)
        return rules

    def _check_options(self, feature: str) -> None:
        """Raises UserError where rows lack labels or objects that rules may ask for."""
        options = self.asked["features"].get(feature, {}).get("options", {})
        least = LEAST_OBJECT if feature.startswith("detection") else LEAST_LABEL
        if options.get("min_score", 0) > least or options.get("labels"):
            raise UserError(
                f"{self.folder} holds some of {feature} only: score again without --labels, --min-score at most {least}"
            )

    def count(self) -> tuple[int, int]:
        """Return how many rows there are, and how many of them belong to a group."""
        with self.connected() as connection:
            [(rows, grouped)] = self.ask(connection, f"SELECT count(*), count({self._by}) FROM rows")  # noqa: S608
        return rows, grouped

    def groups(self) -> Iterator[tuple[str, list[Shown]]]:
        """Yield each group's name and its pictures in their order; groups by name, rows of no group left out."""
        features = [name for name in self.asked["features"] if name in self.schema.names]
        columns = (*BESIDE, QUALITY, *features)
        query = (
            f"SELECT {self._by}::VARCHAR AS _group, {', '.join(map(quoted, columns))} FROM numbered "  # noqa: S608
            f"WHERE {self._by} IS NOT NULL ORDER BY 1, _number"
        )
        with self.connected() as connection:
            connection.register("numbered", self._numbered([*columns, self._holds_by]))
            rows = _each(connection.sql(query).to_arrow_reader(ROWS))
            for name, some in groupby(rows, key=itemgetter("_group")):
                shown = [_shown(row, features) for row in islice(some, MOST + 1)]
                if len(shown) > MOST:
                    raise UserError(f"{self.by} {name!r} has more than {MOST:,} pictures: group by something smaller.")
                yield name, shown

    def _numbered(self, columns: Sequence[str]) -> pa.RecordBatchReader:
        """Return the rows, each with its number. DuckDB's own reader keeps something of each file until its end."""
        held = pa.schema([field for field in self.schema if field.name in columns])

        def batches() -> Iterator[pa.RecordBatch]:
            count = 0
            for batch in self._batches(held.names):
                numbers = pa.array(range(count, count := count + len(batch)), pa.int64())
                yield batch.append_column("_number", numbers)

        return pa.RecordBatchReader.from_batches(held.append(pa.field("_number", pa.int64())), batches())

    def _rows(self) -> str:
        pattern = str(self.folder / "part-*.parquet").replace("'", "''")
        return f"read_parquet('{pattern}', filename = true, file_row_number = true)"


def _each(batches: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _names(kind: pa.StructType) -> list[str]:
    return [field.name for field in kind]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _shown(row: dict[str, Any], features: Sequence[str]) -> Shown:
    if row["status"] != "ok" and not any(row[feature] for feature in features):
        error = VisionError(Code(row["error"]["code"]), row["error"]["message"])
        return Shown(row["id"], row["uri"], Picture.failed(Failure.of(error).error))
    results = {feature: row[feature] for feature in features}
    quality = Quality.model_construct(**row[QUALITY]) if row[QUALITY] else None
    return Shown(row["id"], row["uri"], Picture.of((row["width"], row["height"]), results, quality))
