"""Labelled pictures in the layouts people have: a class a folder, YOLO or COCO boxes, a table of sentences.

Here it is recognised what a folder is; coco.py, yolo.py and tables.py read one form each, and
files.py tells which files count. Paths lead to files as they lie there; nothing is copied. What is wrong with a
whole folder is a DataError of one line; what is wrong with one picture stays with that picture until `readable` sorts
it out; what is left out is counted on standard error.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from train_and_save.datasets import coco, tables, yolo
from train_and_save.datasets.files import (
    NOT_READ,
    Boxed,
    Captioned,
    Corners,
    DataError,
    Example,
    Labelled,
    Part,
    composed,
    is_hidden,
    part_named,
    pictures_below,
    tell_left_out,
)
from vision.core import images
from vision.core.errors import VisionError

__all__ = [
    "LIMITS",
    "Boxed",
    "Captioned",
    "Corners",
    "DataError",
    "Example",
    "Labelled",
    "digest",
    "read_boxes",
    "read_captions_table",
    "read_image_folder",
    "readable",
]

LIMITS = images.Limits(max_bytes=200_000_000, max_pixels=178_000_000)
MAX_BAD = 0.1


def read_image_folder(folder: Path) -> list[Labelled]:
    """Read a class a folder, also under train/ and val/ by their usual names, or a metadata.csv; sorted by path.

    A folder in a folder of the same name is no class, nor is one that holds all others. Raises DataError.
    """
    pictures = pictures_below(folder)
    if rows := tables.metadata(folder, tables.LABELS):
        examples = tables.labelled(folder, pictures, rows)
    else:
        examples = sorted(_classes(folder, pictures, None), key=lambda example: example.path)
    labels = {example.label for example in examples}
    if not examples:
        raise DataError(f"{folder} has pictures but no labels: put each class's pictures into a folder of its name.")
    if len(labels) == 1:
        raise DataError(f"{folder} has one class only, {examples[0].label!r}; a classifier needs two or more.")
    return examples


def read_boxes(folder: Path) -> tuple[list[Boxed], list[str]]:
    """Read boxes as COCO, YOLO or Hugging Face lay them out: pictures, sorted by path, and class names in order.

    Raises DataError.
    """
    pictures = pictures_below(folder)
    if files := coco.tables(folder):
        return coco.read(folder, pictures, files)
    if rows := tables.metadata(folder, ["objects"]):
        return tables.boxed(folder, pictures, rows)
    return yolo.read(folder, pictures)


def read_captions_table(folder: Path) -> list[Captioned]:
    """Read pictures with a table of captions (tables.py); sorted by path. Raises DataError.

    Rows without a picture and pictures without a row are left out.
    """
    return tables.captioned(folder, pictures_below(folder))


def readable(examples: Sequence[Example]) -> tuple[list[Example], list[tuple[Path, str]]]:
    """Decode every picture once; return the good examples, with digests of their pixels, and (path, reason) of others.

    Unreadable pictures, broken label files and pictures that stand under two labels are others.
    Raises DataError where they are more than a tenth, or all that a label has.
    """
    reasons: dict[Path, str] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    pixels: dict[Path, str] = {}
    for example in tqdm(examples, desc="reading pictures", unit="picture"):
        if example.problem:
            reasons[example.path] = example.problem
            continue
        try:
            picture = images.decode(example.path.read_bytes(), LIMITS)
        except (VisionError, OSError) as error:
            convert = " Convert it to JPEG or PNG." if example.path.suffix.lower() in NOT_READ else ""
            reasons[example.path] = f"{error}{convert}"
            continue
        pixels[example.path] = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        if isinstance(example, Labelled):
            labels[pixels[example.path]].add(example.label)
    for path, same in pixels.items():
        if len(labels[same]) > 1:
            reasons[path] = f"The same picture stands under {' and '.join(sorted(labels[same]))}."
    bad = sorted(reasons.items())
    if len(bad) > MAX_BAD * len(examples):
        path, reason = bad[0]
        raise DataError(f"{len(bad)} of {len(examples)} pictures cannot be used, for example {path}: {reason}")
    good = [replace(example, pixels=pixels[example.path]) for example in examples if example.path not in reasons]
    left = {example.label for example in good if isinstance(example, Labelled)}
    for example in examples:
        if isinstance(example, Labelled) and example.label not in left:
            reason = f"for example {example.path}: {reasons[example.path]}"
            raise DataError(f"No picture of {example.label!r} can be used, {reason}")
    return good, bad


def digest(paths: Iterable[Path]) -> str:
    """A sha256 of the files' sorted sha256: the same files make the same digest, whatever their names."""
    each = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def _classes(place: Path, pictures: Sequence[Path], part: Part | None) -> Iterator[Labelled]:
    """The pictures of a folder, which are all below `place`, by the folder in it that is their class."""
    below: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        if path.parent != place:
            below[path.relative_to(place).parts[0]].append(path)
    parts = {name: told for name in below if (told := part_named(name))}
    split = bool(parts) and (len(parts) == len(below) or len(set(parts.values())) == 2)
    without = [path for path in pictures if path.parent == place]
    for name, inside in below.items():
        if split and name not in parts:
            without += inside
        elif split:
            yield from _classes(place / name, inside, part or parts[name])
        elif _holds_classes(place / name, inside) and (len(below) == 1 or composed(name) == composed(place.name)):
            yield from _classes(place / name, inside, part)
        else:
            yield from (Labelled(path, composed(name), part=part) for path in inside)
    tell_left_out(f"pictures in no class's folder of {place}", without)
    if not split:
        tell_left_out(f"folders without a picture in {place}", _empty(place, below))


def _holds_classes(folder: Path, pictures: Sequence[Path]) -> bool:
    return all(path.parent != folder for path in pictures)


def _empty(place: Path, below: Iterable[str]) -> list[str]:
    names = sorted(child.name for child in place.iterdir() if child.is_dir() and not is_hidden(child, place))
    return [name for name in names if name not in set(below)]
