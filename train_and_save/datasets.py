"""Labelled pictures in the layouts people have: a class a folder, YOLO or COCO boxes, a table of sentences.

Paths lead to files as they lie there; nothing is copied. What is wrong with a whole folder is a DataError of one
line; what is wrong with one picture stays with that picture until `readable` sorts it out.
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from PIL import Image
from tqdm import tqdm

from train_and_save import UserError
from vision.core import images
from vision.core.errors import VisionError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}
SPLITS: dict[str, Literal["train", "held_out"]] = {
    "train": "train",
    "val": "held_out",
    "valid": "held_out",
    "validation": "held_out",
    "test": "held_out",
}
LIMITS = images.Limits(max_bytes=200_000_000, max_pixels=178_000_000)
MAX_BAD = 0.1
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""

Corners = tuple[float, float, float, float]


class DataError(UserError):
    """A data set cannot be used; the message is one line that says what to change."""


@dataclass(frozen=True)
class Labelled:
    path: Path
    label: str
    problem: str = ""


@dataclass(frozen=True)
class Boxed:
    """A picture and what is on it. `size` is (width, height) after EXIF orientation, (0, 0) where it is unreadable.

    boxes: (label, (x1, y1, x2, y2) in pixels of `size`); none on a background picture.
    problem: what is wrong with the picture's label file, empty where nothing is.
    """

    path: Path
    size: tuple[int, int]
    boxes: list[tuple[str, Corners]]
    problem: str = ""


@dataclass(frozen=True)
class Captioned:
    path: Path
    captions: list[str]
    problem: str = ""


Example = TypeVar("Example", Labelled, Boxed, Captioned)


def read_image_folder(folder: Path) -> list[Labelled]:
    """Read a class a folder, also under train/ and val/; sorted by path. Raises DataError."""
    pictures = _pictures(folder)
    folders = [child.name for child in folder.iterdir() if child.is_dir()]
    depth = 1 if folders and all(name.lower() in SPLITS for name in folders) else 0
    below = [(path, path.relative_to(folder).parts) for path in pictures]
    examples = [Labelled(path, parts[depth]) for path, parts in below if len(parts) > depth + 1]
    if not examples:
        raise DataError(f"{folder} has pictures but no labels: put each class's pictures into a folder of its name.")
    if len({example.label for example in examples}) == 1:
        raise DataError(f"{folder} has one class only, {examples[0].label!r}; a classifier needs two or more.")
    return examples


def read_boxes(folder: Path) -> tuple[list[Boxed], list[str]]:
    """Read a YOLO or COCO layout: the pictures, sorted by path, and the class names in order. Raises DataError.

    YOLO: pictures under images/, one text file each at the same place under labels/ (class, centre x, centre y, width,
    height, each 0-1; https://docs.ultralytics.com/datasets/detect/), names in names.txt or a .yaml.
    COCO: pictures anywhere below, annotations*.json or instances*.json beside them or in annotations/
    (https://cocodataset.org/#format-data); a box of a crowd is left out.
    """
    pictures = _pictures(folder)
    tables = [file for place in (folder, folder / "annotations") for file in sorted(place.glob("*.json"))]
    tables = [file for file in tables if file.name.startswith(("annotations", "instances", "_annotations"))]
    if tables:
        return _read_coco(folder, pictures, tables)
    return _read_yolo(folder, pictures)


def read_captions_table(folder: Path) -> list[Captioned]:
    """Read images/ with captions.tsv (file, tab, sentence; no header) or captions.csv (columns file and caption).

    Rows whose picture is missing are left out. Sorted by path. Raises DataError.
    """
    pictures = {path.relative_to(folder / "images").as_posix(): path for path in _pictures(folder / "images")}
    captions: dict[str, list[str]] = defaultdict(list)
    for name, sentence in _caption_rows(folder):
        if sentence.strip():
            captions[name].append(sentence.strip())
    examples = [Captioned(path, captions[name]) for name, path in pictures.items() if name in captions]
    if not examples:
        raise DataError(f"No sentence of the table in {folder} belongs to a picture in {folder / 'images'}.")
    return examples


def readable(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[Path, str]]]:
    """Decode every picture once; return the good examples and (path, reason) of the others.

    Unreadable pictures, broken label files and pictures that stand under two labels are others.
    Raises DataError where they are more than a tenth.
    """
    reasons: dict[Path, str] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    digests: dict[Path, str] = {}
    for example in tqdm(examples, desc="reading pictures", unit="picture"):
        if example.problem:
            reasons[example.path] = example.problem
            continue
        try:
            data = example.path.read_bytes()
            images.decode(data, LIMITS)
        except (VisionError, OSError) as error:
            reasons[example.path] = str(error)
            continue
        if isinstance(example, Labelled):
            digests[example.path] = hashlib.sha256(data).hexdigest()
            labels[digests[example.path]].add(example.label)
    for path, digest in digests.items():
        if len(labels[digest]) > 1:
            reasons[path] = f"The same picture stands under {' and '.join(sorted(labels[digest]))}."
    bad = sorted(reasons.items())
    if len(bad) > MAX_BAD * len(examples):
        path, reason = bad[0]
        raise DataError(f"{len(bad)} of {len(examples)} pictures cannot be used, for example {path}: {reason}")
    return [example for example in examples if example.path not in reasons], bad


def own_part(path: Path, folder: Path) -> Literal["train", "held_out"] | None:
    """Which part of the data set's own split a picture lies in, by a folder named train, val or test above it."""
    parts = [part.lower() for part in path.relative_to(folder).parts[:-1]]
    return next((SPLITS[part] for part in parts if part in SPLITS), None)


def digest(paths: Iterable[Path]) -> str:
    """A sha256 of the files' sorted sha256: the same files make the same digest, whatever their names."""
    each = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}).")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text.") from error


def _size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone; (0, 0) where that is unreadable."""
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112) in SIDEWAYS
    except Exception:  # decoders raise nearly every type; `readable` tells what is wrong
        return 0, 0
    return (height, width) if sideways else (width, height)


def _read_yolo(folder: Path, pictures: list[Path]) -> tuple[list[Boxed], list[str]]:
    names = _yolo_names(folder)
    examples, labelled = [], False
    for path in pictures:
        parts = list(path.relative_to(folder).parts)
        if "images" not in parts[:-1]:
            continue
        # the last folder named images becomes labels, as in Ultralytics' own img2label_paths
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        file = folder.joinpath(*parts).with_suffix(".txt")
        size = _size(path)
        try:
            boxes = _yolo_boxes(file, names, size) if file.is_file() else []
        except DataError as error:
            examples.append(Boxed(path, size, [], str(error)))
        else:
            examples.append(Boxed(path, size, boxes))
        labelled = labelled or file.is_file()
    if not examples:
        raise DataError(f"{folder} has no images/ with labels/ beside it, and no COCO annotations: unknown layout.")
    if not labelled:
        raise DataError(f"{folder} has pictures but no labels: no text file under labels/ is named like a picture.")
    return examples, names


def _yolo_names(folder: Path) -> list[str]:
    table = folder / "names.txt"
    if table.is_file():
        return [line.strip() for line in _text(table).splitlines() if line.strip()]
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            found = yaml.safe_load(_text(file))
        except yaml.YAMLError as error:
            raise DataError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
        names = found.get("names") if isinstance(found, dict) else None
        if isinstance(names, dict):
            names = [names[index] for index in sorted(names)]
        if names:
            return [str(name) for name in names]
    raise DataError(f"{folder} has no class names: neither COCO annotations, names.txt nor a data.yaml with names.")


def _yolo_boxes(file: Path, names: list[str], size: tuple[int, int]) -> list[tuple[str, Corners]]:
    width, height = size
    boxes: list[tuple[str, Corners]] = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, x, y, w, h = (float(value) for value in line.split())
        except ValueError:
            raise DataError(f"{file.name} line {number} is not a class and four numbers.") from None
        if not (kind.is_integer() and 0 <= kind < len(names)):
            raise DataError(f"{file.name} line {number}: class {kind:g} is not among the {len(names)} names.")
        if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < w <= 1 and 0 < h <= 1):
            raise DataError(f"{file.name} line {number}: the box leaves 0-1.")
        corners = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        boxes.append((names[int(kind)], corners))
    return boxes


def _read_coco(folder: Path, pictures: list[Path], tables: list[Path]) -> tuple[list[Boxed], list[str]]:
    # an annotation file names pictures relative to a folder that it does not name
    by_name = {path.name: path for path in pictures}
    by_place = {path.relative_to(folder).as_posix(): path for path in pictures}
    names: dict[int, str] = {}
    found: dict[Path, Boxed] = {}
    for table in tables:
        try:
            content: dict[str, Any] = json.loads(_text(table))
            names |= {int(category["id"]): str(category["name"]) for category in content["categories"]}
            boxes: dict[Any, list[tuple[str, Corners]]] = defaultdict(list)
            for annotation in content["annotations"]:
                x, y, w, h = (float(value) for value in annotation["bbox"])
                if not annotation.get("iscrowd"):
                    boxes[annotation["image_id"]].append((names[annotation["category_id"]], (x, y, x + w, y + h)))
            for image in content["images"]:
                name = str(image["file_name"])
                places = (f"images/{name}", name)
                path = next((by_place[place] for place in places if place in by_place), by_name.get(Path(name).name))
                if path is not None:
                    found[path] = _coco_example(path, boxes[image["id"]])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{table} is no COCO detection file: {type(error).__name__} {error}") from error
    if not found:
        raise DataError(f"No picture of {tables[0].name} lies in {folder}.")
    if not any(example.boxes for example in found.values()):
        raise DataError(f"{folder} has pictures but no labels: no box belongs to a picture.")
    return [found[path] for path in sorted(found)], [names[index] for index in sorted(names)]


def _coco_example(path: Path, boxes: list[tuple[str, Corners]]) -> Boxed:
    size = width, height = _size(path)
    for label, (x1, y1, x2, y2) in boxes:
        # a pixel of tolerance, as annotation tools round
        if size != (0, 0) and not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
            return Boxed(path, size, [], f"A box of {label!r} leaves the {width} x {height} picture or is empty.")
    return Boxed(path, size, boxes)


def _caption_rows(folder: Path) -> Iterable[tuple[str, str]]:
    if (folder / "captions.tsv").is_file():
        for number, line in enumerate(_text(folder / "captions.tsv").splitlines(), 1):
            name, tab, sentence = line.partition("\t")
            if not tab and line.strip():
                raise DataError(f"{folder / 'captions.tsv'} line {number} has no tab between file and sentence.")
            yield name, sentence
    elif (folder / "captions.csv").is_file():
        reader = csv.DictReader(_text(folder / "captions.csv").splitlines())
        if not {"file", "caption"} <= set(reader.fieldnames or ()):
            raise DataError(f"{folder / 'captions.csv'} lacks the header file,caption.")
        for row in reader:
            yield row["file"] or "", row["caption"] or ""
    else:
        raise DataError(f"{folder} has no labels: neither captions.tsv nor captions.csv.")
