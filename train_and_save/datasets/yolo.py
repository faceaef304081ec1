"""Boxes of YOLO's text files, as Ultralytics, Roboflow, CVAT and Label Studio write them.

https://docs.ultralytics.com/datasets/detect/: a line is class, centre x, centre y, width, height, each 0-1. Of a
polygon (class, x1, y1, x2, y2, ...) the bounds are taken, as Ultralytics does.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from train_and_save.datasets.files import (
    Boxed,
    Corners,
    DataError,
    Finder,
    Part,
    composed,
    part_above,
    part_named,
    size_of,
    tell_left_out,
    text,
    visible,
)

NAME_FILES = ("names.txt", "classes.txt", "obj.names", "notes.json", "*.names", "*.yaml", "*.yml")
HAIR = 0.01
"""How far a coordinate may lie outside of 0-1; Ultralytics clips as much."""


def read(folder: Path, pictures: Sequence[Path]) -> tuple[list[Boxed], list[str]]:
    """The pictures under images/ or beside their labels, sorted by path, and the class names. Raises DataError.

    A picture without a text file is background, as in Ultralytics; how many are is told.
    """
    names = _names(folder)
    texts = {_key(file, folder): file for file in visible(folder) if file.suffix.lower() == ".txt"}
    files = {path: next((texts[key] for key in _label_keys(path, folder) if key in texts), None) for path in pictures}
    labelled = {path.parent for path, file in files.items() if file is not None}
    counted = [path for path in pictures if path.parent in labelled or "images" in _folders(path, folder)]
    if not counted:
        raise DataError(
            f"{folder} has no images/ with labels/ beside it, no text files beside its pictures, and no COCO table:"
            " unknown layout."
        )
    if not labelled:
        raise DataError(f"{folder} has pictures but no labels: no text file under labels/ is named like a picture.")
    tell_left_out("pictures outside of images/ and without labels", sorted(set(pictures) - set(counted)))
    background = [path for path in counted if files[path] is None]
    if background:
        print(f"{len(background)} of {len(counted)} pictures have no label file: background", file=sys.stderr)
    homes = {file.parent for file in files.values() if file is not None}
    used = {*files.values()}
    alone = [file for file in texts.values() if file.parent in homes and file not in used]
    tell_left_out("label files without a picture", [file for file in alone if file.name not in NAME_FILES])
    parts = _listed_parts(folder, pictures)
    examples = [_example(path, files[path], names, parts.get(path) or part_above(path, folder)) for path in counted]
    return examples, list(names.values())


def _example(path: Path, file: Path | None, names: dict[int, str], part: Part | None) -> Boxed:
    size = size_of(path)
    try:
        return Boxed(path, size, _boxes(file, names, size) if file is not None else [], part=part)
    except DataError as error:
        return Boxed(path, size, [], str(error), part)


def _boxes(file: Path, names: dict[int, str], size: tuple[int, int]) -> list[tuple[str, Corners]]:
    lines = [line.strip() for line in text(file).splitlines()]
    boxes = []
    for line in dict.fromkeys(filter(None, lines)):  # a line twice is one box, as in Ultralytics
        where = f"{file} line {lines.index(line) + 1}"
        try:
            kind, *values = (float(value) for value in line.split())
        except ValueError:
            raise DataError(f"{where} is not of numbers: {line[:60]!r}.") from None
        if not (kind.is_integer() and int(kind) in names):
            raise DataError(f"{where}: class {kind:g} is not among the {len(names)} names.")
        boxes.append((names[int(kind)], _corners(values, size, where)))
    return boxes


def _corners(values: list[float], size: tuple[int, int], where: str) -> Corners:
    """The bounds, in pixels, of a box (centre x, centre y, width, height) or of a polygon (x1, y1, x2, y2, x3, ...)."""
    if len(values) == 4:
        x, y, w, h = values
        bounds = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        bounds = [min(xs), min(ys), max(xs), max(ys)]
    else:
        raise DataError(f"{where} is not a class and four numbers, nor a class and the corners of a polygon.")
    outside = max(values) > 1 + HAIR or min(values) < -HAIR
    if outside or bounds[0] >= bounds[2] or bounds[1] >= bounds[3]:
        raise DataError(f"{where}: the box leaves 0-1 or is empty; coordinates are shares of the picture's sides.")
    x1, y1, x2, y2 = (min(max(value, 0), 1) for value in bounds)
    return x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1]


def _folders(path: Path, folder: Path) -> list[str]:
    return [step.lower() for step in path.relative_to(folder).parts[:-1]]


def _key(file: Path, folder: Path) -> str:
    """A file's path in the data set without its suffix."""
    return composed(file.relative_to(folder).with_suffix("").as_posix())


def _label_keys(path: Path, folder: Path) -> list[str]:
    """Where a picture's labels may lie: under labels/ in place of the last images/, as in Ultralytics, or beside it."""
    beside = _key(path, folder)
    steps, folders = beside.split("/"), _folders(path, folder)
    if "images" not in folders:
        return [beside]
    at = len(folders) - 1 - folders[::-1].index("images")
    return ["/".join([*steps[:at], "labels", *steps[at + 1 :]]), beside]


def _listed_parts(folder: Path, pictures: Sequence[Path]) -> dict[Path, Part]:
    """The parts of pictures that lists tell, train.txt, valid.txt and so on, as Darknet and CVAT write them."""
    parts: dict[Path, Part] = {}
    lists = [(part, file) for file in sorted(folder.glob("*.txt")) if (part := part_named(file.stem))]
    for part, file in sorted(
        lists, key=lambda each: each[0] == "held_out"
    ):  # last: it is held out, in train.txt or not
        lines = [line.strip() for line in text(file).splitlines() if line.strip()]
        parts |= dict.fromkeys(Finder(folder, pictures).find(lines, file).values(), part)
    return parts


def _names(folder: Path) -> dict[int, str]:
    """The names of the classes by number, from whichever file the tool writes them into. Raises DataError."""
    found: dict[Path, dict[int, str]] = {}
    for place in (folder, folder / "labels", folder / "obj_train_data"):
        for pattern in NAME_FILES:
            for file in sorted(place.glob(pattern)):
                if names := _names_in(file):
                    found[file] = names
    if not found:
        known = "names.txt, classes.txt, obj.names, notes.json nor a data.yaml with names"
        raise DataError(f"{folder} has no class names: neither a COCO table, {known}.")
    (first, names), *others = found.items()
    for file, other in others:
        if other != names:
            raise DataError(f"{first} and {file} name different classes: leave the one that the labels were made with.")
    return names


def _names_in(file: Path) -> dict[int, str]:
    match file.suffix:
        case ".json":
            return _listed(_parsed(file, json.loads), "categories", file)
        case ".yaml" | ".yml":
            return _listed(_parsed(file, yaml.safe_load), "names", file)
    lines = [line.strip() for line in text(file).rstrip().splitlines()]
    if "" in lines:
        raise DataError(f"{file} line {lines.index('') + 1} is empty: a class's number is its line, so name each.")
    return dict(enumerate(lines))


def _parsed(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text(file))
    except (yaml.YAMLError, ValueError) as error:
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise DataError(f"{file} is no {kind}: {' '.join(str(error).split())[:200]}") from error


def _listed(content: Any, name: str, file: Path) -> dict[int, str]:
    """The names of a data.yaml, a list or by number, or of Label Studio's notes.json; none where a file has none."""
    listed = content.get(name) if isinstance(content, dict) else None
    try:
        if isinstance(listed, dict):
            return {int(number): str(label) for number, label in sorted(listed.items(), key=lambda item: int(item[0]))}
        if name == "categories":
            return {int(row["id"]): str(row["name"]) for row in listed or []}
        if listed is not None and not isinstance(listed, list):
            raise DataError(f"{file}: names is {str(listed)[:60]!r}; write a list, or number: name.")
        return {number: str(label) for number, label in enumerate(listed or [])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: {name} is no list of names, nor names by number: {str(listed)[:60]}.") from error
