"""Tables that tell a sentence, a label or boxes of each picture: TSV, CSV, Flickr's own, Hugging Face's metadata."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_and_save.datasets.files import (
    Boxed,
    Captioned,
    DataError,
    Finder,
    Labelled,
    composed,
    part_above,
    size_of,
    tell_left_out,
    text,
    visible,
)

CAPTION_TABLES = ("captions.tsv", "captions.csv", "captions.txt", "results.csv", "Flickr8k.token.txt")
METADATA = ("metadata.csv", "metadata.jsonl")
"""Hugging Face's, beside the pictures of each part (https://huggingface.co/docs/datasets/image_dataset)."""
FILES = "file file_name filename image image_name image_file image_path filepath path img name image_id id".split()
SENTENCES = "caption captions text sentence comment description title prompt".split()
LABELS = "label labels class class_name category".split()


@dataclass(frozen=True)
class Row:
    table: Path
    line: int
    cells: dict[str, Any]

    def get(self, names: Sequence[str]) -> Any:
        """The cell under the first of some headers that the table has. Raises DataError where it has none."""
        for name in names:
            if name in self.cells:
                return self.cells[name]
        raise DataError(
            f"{self.table} has no column for {names[0]}, by a name such as {', '.join(names[:4])};"
            f" it has {', '.join(map(str, self.cells))}."
        )

    def has(self, names: Sequence[str]) -> bool:
        return any(name in self.cells for name in names)

    @property
    def where(self) -> str:
        return f"{self.table} line {self.line}"


def metadata(folder: Path, names: Sequence[str]) -> list[Row]:
    """The rows of Hugging Face's tables below a folder, where they have a column of such a name."""
    rows = [row for table in visible(folder) if table.name in METADATA for row in read_rows(table)]
    return rows if rows and rows[0].has(names) else []


def captioned(folder: Path, pictures: Sequence[Path]) -> list[Captioned]:
    """Pictures with the sentences of a table. Raises DataError where there is none, or none that fits."""
    tables = [folder / name for name in CAPTION_TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{tables[0]} and {tables[1].name} both tell captions: leave the one that counts.")
    rows = list(read_rows(tables[0])) if tables else metadata(folder, SENTENCES)
    if not rows:
        raise DataError(f"{folder} has no labels: neither {', '.join(CAPTION_TABLES[:3])} nor {' or '.join(METADATA)}.")
    found = _find(folder, pictures, rows)
    captions: dict[Path, list[str]] = {path: [] for _, path in found}
    empty = []
    for row, path in found:
        told = row.get(SENTENCES)
        sentences = [" ".join(str(one).split()) for one in (told if isinstance(told, list) else [told or ""])]
        captions[path] += [sentence for sentence in sentences if sentence]
        if not any(sentences):
            empty.append(row.where)
    tell_left_out("rows without a sentence", empty)
    captions = {path: said for path, said in captions.items() if said}
    if not captions:
        raise DataError(f"No sentence of {rows[0].table} belongs to a picture in {folder}.")
    tell_left_out("pictures without a sentence", [path for path in pictures if path not in captions])
    return [Captioned(path, captions[path], part=part_above(path, folder)) for path in sorted(captions)]


def labelled(folder: Path, pictures: Sequence[Path], rows: Sequence[Row]) -> list[Labelled]:
    found = {path: composed(str(row.get(LABELS))) for row, path in _find(folder, pictures, rows)}
    tell_left_out("pictures that no table names", [path for path in pictures if path not in found])
    return [Labelled(path, found[path], part=part_above(path, folder)) for path in sorted(found)]


def boxed(folder: Path, pictures: Sequence[Path], rows: Sequence[Row]) -> tuple[list[Boxed], list[str]]:
    """Boxes of a column `objects`: {"bbox": [[x, y, width, height], ...], "categories": [...]}."""
    examples: dict[Path, Boxed] = {}
    for row, path in _find(folder, pictures, rows):
        objects = row.get(["objects"])
        try:
            kinds = objects.get("categories", objects.get("category"))
            boxes = [
                (str(kind), (float(x), float(y), float(x) + float(w), float(y) + float(h)))
                for kind, (x, y, w, h) in zip(kinds, objects["bbox"], strict=True)
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f'{row.where}: objects is not {{"bbox": [[x, y, w, h]], "categories": [...]}}.') from error
        examples[path] = Boxed(path, size_of(path), boxes, part=part_above(path, folder))
    if not any(example.boxes for example in examples.values()):
        raise DataError(f"{folder} has pictures but no labels: no box of {rows[0].table} belongs to a picture.")
    tell_left_out("pictures that no table names", [path for path in pictures if path not in examples])
    names = sorted({label for example in examples.values() for label, _ in example.boxes})
    return [examples[path] for path in sorted(examples)], names


def read_rows(table: Path) -> Iterable[Row]:
    """A table's rows; headers in lower case. Raises DataError, with the line."""
    return _json_rows(table) if table.suffix == ".jsonl" else _rows(table)


def _rows(table: Path) -> Iterable[Row]:
    content = text(table)
    first = content.partition("\n")[0]
    separator = "\t" if table.suffix == ".tsv" or "\t" in first else max(",;|", key=first.count)
    lines = [(line, cells) for line, cells in _cells(table, content, separator) if "".join(cells).strip()]
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    if set(header) & set(FILES):
        lines = lines[1:]
    elif separator == "\t":
        header = ["file", "caption"]
    else:
        raise DataError(f"{table} begins with {first[:80]!r}: it lacks a header such as file,caption.")
    for line, cells in lines:
        # the separator in a last cell that nobody quoted
        whole = [*cells[: len(header) - 1], separator.join(cells[len(header) - 1 :])]
        if len(cells) < len(header):
            raise DataError(
                f"{table} line {line} has {len(cells)} cells; {len(header)} are wanted ({', '.join(header)})."
            )
        yield Row(table, line, dict(zip(header, map(str.strip, whole), strict=True)))


def _cells(table: Path, content: str, separator: str) -> list[tuple[int, list[str]]]:
    """The cells of each line, and its number; in tables with tabs or bars a quotation mark may be a sentence's own."""
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, quoting=quoting, strict=True)
        try:
            return [(reader.line_num, cells) for cells in reader]
        except csv.Error as error:
            if quoting == csv.QUOTE_NONE or separator in ",;":
                raise DataError(
                    f"{table} line {reader.line_num}: {error}; a quotation mark within quotes is doubled."
                ) from error
    raise AssertionError("unreachable")


def _json_rows(table: Path) -> Iterable[Row]:
    for number, line in enumerate(text(table).splitlines(), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:
            raise DataError(f"{table} line {number} is no JSON: {error}") from error
        if not isinstance(cells, dict):
            raise DataError(f"{table} line {number} is no object with file_name.")
        yield Row(table, number, {str(name).lower(): value for name, value in cells.items()})


def _find(folder: Path, pictures: Sequence[Path], rows: Iterable[Row]) -> list[tuple[Row, Path]]:
    """Each row that has a picture, with it. A name may end in #0, the number of a sentence in Flickr's tables."""
    finder, by_table = Finder(folder, pictures), defaultdict(list)
    for row in rows:
        by_table[row.table].append((row, _file(row)))
    found = []
    for table, named in by_table.items():
        places = finder.find([name for _, name in named], table)
        found += [(row, places[name]) for row, name in named if name in places]
    return found


def _file(row: Row) -> str:
    name = str(row.get(FILES))
    bare, mark, number = name.rpartition("#")
    return bare if mark and number.isdecimal() else name
