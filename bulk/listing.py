"""What a collection holds: a folder tree, tar files or a manifest, listed in constant memory. Nothing is opened."""

import csv
import io
import os
import tarfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bulk import UserError
from bulk.addresses import Entry, filesystem, is_remote, join, open_, without_secrets
from vision.core.images import FORMATS

SUFFIXES = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
"""Of pictures; in a folder, a file without a suffix is taken for one, too."""

TABLES = (".txt", ".csv", ".tsv", ".parquet")
PATHS = ("path", "uri", "url", "file", "filename", "file_name", "image")
"""What a manifest may call the column that says where a picture is."""

SORTED = 100_000
"""Names of a folder that are sorted at a time: more would have to be kept."""

TEXTS = ("cls", "txt", "json")
"""What stands beside a picture in a WebDataset and is carried along, as text."""


@dataclass
class Columns:
    """A manifest's columns by name; None is the usual name, if it is there."""

    path: str | None = None
    id: str | None = None
    group: str | None = None


@dataclass
class Listing:
    """Entries to be read once, and what is known of them before and after."""

    entries: Iterator[Entry]
    carried: pa.Schema
    """Of what entries carry along; may be empty."""
    ids_given: bool = False
    """Whether ids were given by somebody, who may have given one twice."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures, by suffix; whole once all entries are read."""


def listing(photos: str, columns: Columns) -> Listing:
    """List a collection. Raises UserError, also while entries are read."""
    suffix = PurePosixPath(without_secrets(photos)).suffix.lower()
    if suffix in TABLES:
        return _table(photos, suffix, columns)
    skipped = Counter[str]()
    if suffix == ".tar":
        entries = _tar(photos, PurePosixPath(without_secrets(photos)).name)
    elif is_remote(photos):
        entries = _remote(photos, skipped)
    elif Path(photos).is_dir():
        entries = _folder(Path(os.path.abspath(photos)), "", skipped)  # noqa: PTH100  links stay as they are named
    else:
        what = "is neither a folder nor a .tar, .txt, .csv, .tsv or .parquet file"
        raise UserError(f"{photos} {what if Path(photos).exists() else 'is not there'}.")
    texts = pa.schema([(name, pa.string()) for name in TEXTS])
    found = _peek(entries)
    has_texts = found[0] is not None and found[0].member is not None
    return Listing(found[1], texts if has_texts else pa.schema([]), False, skipped)


def _peek(entries: Iterator[Entry]) -> tuple[Entry | None, Iterator[Entry]]:
    first = next(entries, None)
    return first, chain([] if first is None else [first], entries)


def _folder(root: Path, inside: str, skipped: Counter[str]) -> Iterator[Entry]:
    """Walk a folder: files before folders, in the order of their names; links to folders are not followed."""
    folders: list[str] = []
    try:
        with os.scandir(root / inside) as scan:
            visible = (one for one in scan if not one.name.startswith("."))
            while some := list(islice(visible, SORTED)):
                for one in sorted(some, key=lambda one: one.name):
                    if one.is_dir(follow_symlinks=False):
                        folders.append(one.name)
                    elif one.is_file():
                        yield from _file(one.path, f"{inside}{one.name}", inside, skipped)
    except OSError as error:
        raise UserError(f"{root / inside} cannot be listed: {error.strerror}") from error
    for name in sorted(folders):
        yield from _folder(root, f"{inside}{name}/", skipped)


def _remote(photos: str, skipped: Counter[str]) -> Iterator[Entry]:
    """Walk a remote folder, one of its folders in memory at a time."""
    system, root = filesystem(photos)
    scheme = photos.partition("://")[0]
    try:
        for folder, _, files in system.walk(root):
            inside = folder[len(root) :].strip("/")
            inside = f"{inside}/" if inside else ""
            for name in sorted(files):
                yield from _file(f"{scheme}://{folder.rstrip('/')}/{name}", inside + name, inside, skipped)
            system.invalidate_cache()
    except OSError as error:
        raise UserError(f"{without_secrets(photos)} cannot be listed: {error}") from error


def _file(address: str, name: str, inside: str, skipped: Counter[str]) -> Iterator[Entry]:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".tar":
        yield from _tar(address, name)
    elif suffix in SUFFIXES or not suffix:
        yield Entry(name, inside.rstrip("/") or None, address)
    else:
        skipped[suffix] += 1


def _tar(address: str, name: str) -> Iterator[Entry]:
    """Read a tar's headers: where each picture's bytes lie, and the texts with its key beside it.

    WebDataset's layout: files with one key, their name up to its first dot, stand one after the other.
    """
    where = without_secrets(address)
    address = address if is_remote(address) else os.path.abspath(address)  # noqa: PTH100
    with open_(address) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                sample: list[Entry] = []
                texts: dict[str, str] = {}
                key = ""
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    path = PurePosixPath(member.name)
                    stem, _, extension = path.name.partition(".")
                    if not member.isfile() or path.name.startswith("."):
                        continue
                    if (found := str(path.parent / stem)) != key:
                        yield from (one._replace(carried=texts) for one in sample)
                        key, sample, texts = found, [], {}
                    if extension in TEXTS:
                        content = tar.extractfile(member)
                        texts[extension] = content.read().decode(errors="replace") if content else ""
                    elif path.suffix.lower() in SUFFIXES:
                        at = member.offset_data
                        sample.append(Entry(f"{name}/{member.name}", name, address, at, member.size, member.name))
                yield from (one._replace(carried=texts) for one in sample)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{where} is no tar file that can be read: {error}. It must not be compressed.") from error


def _table(address: str, suffix: str, columns: Columns) -> Listing:
    folder = os.path.dirname(address if is_remote(address) else os.path.abspath(address))  # noqa: PTH100, PTH120
    schema, rows = _parquet(address) if suffix == ".parquet" else _text(address, suffix)
    path = _column(schema, columns.path, PATHS, address)
    if path is None:
        raise UserError(f"{address} has no column {', '.join(PATHS)}; --path-column names it. It has {_names(schema)}.")
    id_ = _column(schema, columns.id, ("id",), address)
    group = _column(schema, columns.group, ("group",), address)
    carried = pa.schema([one for one in schema if one.name not in (path, id_, group)])
    return Listing(_rows(address, folder, rows, path, id_, group, carried.names), carried, id_ is not None)


def _rows(
    address: str,
    folder: str,
    rows: Iterable[dict[str, Any]],
    path: str,
    id_: str | None,
    group: str | None,
    carried: list[str],
) -> Iterator[Entry]:
    for number, row in enumerate(rows):
        if not row[path]:
            raise UserError(f"{address}: row {number} has no {path}.")
        if id_ and row[id_] in (None, ""):
            raise UserError(f"{address}: row {number} has no {id_}.")
        of = row[group] if group else None
        yield Entry(
            str(row[id_]) if id_ else str(number),
            None if of in (None, "") else str(of),
            join(folder, str(row[path])),
            carried={name: row[name] for name in carried} if carried else None,
        )


def _column(schema: pa.Schema, wanted: str | None, usual: tuple[str, ...], address: str) -> str | None:
    if wanted is not None and wanted not in schema.names:
        raise UserError(f"{address} has no column {wanted!r}; it has {_names(schema)}.")
    by_name = {name.casefold(): name for name in reversed(schema.names)}
    return wanted or next((by_name[name] for name in usual if name in by_name), None)


def _names(schema: pa.Schema) -> str:
    return ", ".join(schema.names)


def _parquet(address: str) -> tuple[pa.Schema, Iterator[dict[str, Any]]]:
    try:
        with open_(address) as file:
            schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{address} is no Parquet file that can be read: {error}") from error

    def rows() -> Iterator[dict[str, Any]]:
        try:
            with open_(address) as file:
                for batch in pq.ParquetFile(file).iter_batches(4096):
                    yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{address} is damaged: {error}") from error

    return schema, rows()


def _text(address: str, suffix: str) -> tuple[pa.Schema, Iterator[dict[str, Any]]]:
    """A .txt has a path a line; the others have a header, and commas, semicolons or tabs."""
    if suffix == ".txt":
        paths = (line.rstrip("\r\n") for line in _lines(address))
        return pa.schema([("path", pa.string())]), ({"path": path} for path in paths if path)
    lines = _lines(address)
    head = next(lines, "").rstrip("\r\n")
    lines.close()
    comma = max(",;\t", key=head.count)
    names = next(csv.reader([head], delimiter=comma), [])
    if len(set(names)) < len(names) or "" in names:
        raise UserError(f"{address}: its header needs a name for each column, and each once.")

    def rows() -> Iterator[dict[str, Any]]:
        table = (values for values in csv.reader(_lines(address), delimiter=comma) if values)
        for number, values in enumerate(islice(table, 1, None)):
            if len(values) != len(names):
                raise UserError(f"{address}: row {number} has {len(values)} values, the header {len(names)}.")
            yield dict(zip(names, (value or None for value in values), strict=True))

    return pa.schema([(name, pa.string()) for name in names]), rows()


def _lines(address: str) -> Generator[str, None, None]:
    try:
        with io.TextIOWrapper(open_(address), encoding="utf-8-sig", newline="") as lines:
            yield from lines
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{address} cannot be read as UTF-8 text: {error}") from error
