"""Boxes of COCO's tables, as COCO, Roboflow and Label Studio write them (https://cocodataset.org/#format-data)."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_and_save.datasets.files import (
    Boxed,
    Corners,
    DataError,
    Finder,
    part_above,
    part_named,
    size_of,
    tell_left_out,
    text,
    visible,
)

OTHER_TABLES = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
"""What lies beside COCO's own instances_*.json, and tells other things of the same pictures."""


Tables = dict[Path, dict[str, Any]]
"""What each table holds."""


def tables(folder: Path) -> Tables:
    """Every COCO table below a folder, whatever its name. Raises DataError where a file is no JSON."""
    found = [file for file in visible(folder) if file.suffix.lower() == ".json"]
    contents = {file: _parsed(file) for file in found if not file.name.startswith(OTHER_TABLES)}
    return {
        file: content
        for file, content in contents.items()
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()
    }


def read(folder: Path, pictures: Sequence[Path], tables: Tables) -> tuple[list[Boxed], list[str]]:
    """The pictures of the tables, sorted by path, and the names of all categories. Raises DataError.

    A crowd's box and an annotation without a box are left out; a category that only stands above others, as
    Roboflow's first, is no label.
    """
    finder = Finder(folder, pictures)
    names: dict[str, None] = {}
    found: dict[Path, Boxed] = {}
    for table, content in tables.items():
        categories, boxes, rows = _read_table(table, content)
        names |= dict.fromkeys(categories)
        for name, path in finder.find(rows, table).items():
            key, size = rows[name]
            example = _example(path, boxes[key], size, part_named(table.stem) or part_above(path, folder))
            if path in found and found[path].boxes != example.boxes:
                raise DataError(f"{path} has other boxes in {table} than in another table: leave one table.")
            found[path] = example
    if not found:
        raise DataError(
            f"No picture of {next(iter(tables))} lies in {folder}: put the pictures beside the table or in images/."
        )
    if not any(example.boxes for example in found.values()):
        raise DataError(f"{folder} has pictures but no labels: no box belongs to a picture.")
    tell_left_out("pictures that no table names", [path for path in pictures if path not in found])
    return [found[path] for path in sorted(found)], list(names)


Row = tuple[str, tuple[int, int]]
"""An image's id, and its (width, height), 0 where the table does not tell."""


def _parsed(file: Path) -> Any:
    try:
        return json.loads(text(file))
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}. Export it again, or take it away.") from error


def _read_table(
    table: Path, content: dict[str, Any]
) -> tuple[list[str], dict[str, list[tuple[str, Corners]]], dict[str, Row]]:
    """A table's category names, boxes by image id, and images by file name; ids as text, as some tools write them."""
    names = {
        _field(row, "id", table, "category"): _field(row, "name", table, "category") for row in content["categories"]
    }
    boxes: dict[str, list[tuple[str, Corners]]] = defaultdict(list)
    without, used = [], set()
    for annotation in content["annotations"]:
        which = f"annotation {annotation.get('id', annotation) if isinstance(annotation, dict) else annotation}"
        category = _field(annotation, "category_id", table, "annotation")
        if category not in names:
            raise DataError(f"{table}: {which} is of category {category}, which is not among its categories: add it.")
        used.add(category)
        if not annotation.get("bbox"):
            without.append(which)
        elif str(annotation.get("iscrowd") or 0) == "0":
            image = _field(annotation, "image_id", table, "annotation")
            boxes[image].append((names[category], _corners(annotation["bbox"], table, which)))
    tell_left_out(f"annotations without a box in {table}", without)
    above = {str(row.get("supercategory")) for row in content["categories"]}
    kept = [name for key, name in names.items() if key in used or name not in above]
    images: dict[str, Row] = {}
    for image in content["images"]:
        size = (_pixels(image, "width"), _pixels(image, "height")) if isinstance(image, dict) else (0, 0)
        row = _field(image, "id", table, "image"), size
        name = _field(image, "file_name", table, "image")
        if images.setdefault(name, row) != row:
            raise DataError(f"{table} has two images named {name!r}: give each its own file_name.")
    return kept, boxes, images


def _field(row: Any, name: str, table: Path, kind: str) -> str:
    if not isinstance(row, dict) or row.get(name) in (None, ""):
        shown = json.dumps(row)[:100]
        raise DataError(f"{table}: an {kind} has no {name}: {shown}. Export it again as COCO detection.")
    return str(row[name])


def _pixels(image: dict[str, Any], name: str) -> int:
    value = str(image.get(name) or 0)
    return int(value) if value.isdecimal() else 0


def _corners(box: Any, table: Path, which: str) -> Corners:
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        raise DataError(f"{table}: the bbox of {which} is not x, y, width, height: {str(box)[:100]}.") from None
    return x, y, x + width, y + height


def _example(path: Path, boxes: list[tuple[str, Corners]], told: tuple[int, int], part: Any) -> Boxed:
    size = width, height = size_of(path)
    if size != (0, 0) and all(told) and told != size:
        problem = f"The table tells {told[0]} x {told[1]} pixels, the picture has {width} x {height} as it is shown."
        return Boxed(path, size, [], problem, part)
    for label, (x1, y1, x2, y2) in boxes:
        # a pixel of tolerance, as annotation tools round
        if size != (0, 0) and not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
            problem = f"A box of {label!r} leaves the {width} x {height} picture or is empty."
            return Boxed(path, size, [], problem, part)
    return Boxed(path, size, boxes, part=part)
