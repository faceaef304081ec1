"""A data set's files: which count, which part they belong to, and which picture a table means.

Names are compared in Unicode's NFC form: macOS decomposes the names of files (NFD), while tables hold them composed.
"""

import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image

from train_and_save import UserError
from vision.core import images

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".avif", ".heic", ".heif"}
NOT_READ = {".tif", ".tiff", ".jp2", ".psd", ".tga", ".ppm", ".pgm", ".dng", ".cr2", ".nef", ".arw", ".jxl"}
"""Pictures, too: they are counted as such, so that a class of them does not vanish without a word."""

SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""

Part = Literal["train", "held_out"]
PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "test", "testing", "dev", "eval", "evaluation"), "held_out"),
}
BESIDE_PARTS = set("set data dataset images image img imgs obj seg labels split instances annotations coco".split())
"""Words that a part's folder or table may have beside its own: seg_train, test_set, obj_train_data, train2017."""

Corners = tuple[float, float, float, float]


class DataError(UserError):
    """A data set cannot be used; the message is one line that says what to change."""


@dataclass(frozen=True)
class Labelled:
    path: Path
    label: str
    problem: str = ""
    part: Part | None = None
    """Of the data set's own split; None where it has none."""
    pixels: str = ""
    """A digest of the decoded picture, once `readable` has seen it."""


@dataclass(frozen=True)
class Boxed:
    """A picture and what is on it. `size` is (width, height) after EXIF orientation, (0, 0) where it is unreadable.

    boxes: (label, (x1, y1, x2, y2) in pixels of `size`); none on a background picture.
    problem: what is wrong with the picture's labels, empty where nothing is. part, pixels: as of Labelled.
    """

    path: Path
    size: tuple[int, int]
    boxes: list[tuple[str, Corners]]
    problem: str = ""
    part: Part | None = None
    pixels: str = ""


@dataclass(frozen=True)
class Captioned:
    path: Path
    captions: list[str]
    problem: str = ""
    part: Part | None = None
    pixels: str = ""


Example = TypeVar("Example", Labelled, Boxed, Captioned)


def composed(name: str) -> str:
    """The form in which names are compared."""
    return unicodedata.normalize("NFC", name).strip()


def tell_left_out(what: str, left: Sequence[object]) -> None:
    """Say on standard error what of a data set does not count, how much, and for example which."""
    if left:
        print(f"left out: {len(left)} {what}, for example {left[0]}", file=sys.stderr)


def visible(folder: Path) -> list[Path]:
    """Every file below a folder, sorted, but for what is hidden or a system's own."""
    return sorted(file for file in folder.rglob("*") if not is_hidden(file, folder) and file.is_file())


def pictures_below(folder: Path) -> list[Path]:
    """Every picture below a folder, sorted. Raises DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder.")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES | NOT_READ)
    shown = [file for file in found if not is_hidden(file, folder)]
    tell_left_out("pictures in hidden or system folders", [file for file in found if file not in set(shown)])
    if not shown:
        raise DataError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}).")
    return shown


def part_named(name: str) -> Part | None:
    """The part that a folder's or a table's name tells: train2017, Testing, valid, test_set, obj_train_data."""
    words = re.findall(r"[^\W\d_]+", composed(name).lower())
    parts = {PARTS[word] for word in words if word in PARTS}
    known = all(word in PARTS or word in BESIDE_PARTS for word in words)
    return parts.pop() if len(parts) == 1 and known else None


def part_above(path: Path, folder: Path) -> Part | None:
    """The part that a folder between `folder` and a file tells."""
    return _first_part(path.relative_to(folder).parts[:-1])


def _first_part(names: Iterable[str]) -> Part | None:
    return next((part for name in names if (part := part_named(name))), None)


def is_hidden(file: Path, folder: Path) -> bool:
    return any(step.startswith(".") or step.lower() in SYSTEM for step in file.relative_to(folder).parts)


def text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8 text (byte {error.start}): save it as UTF-8.") from error


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone; (0, 0) where that is unreadable."""
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112) in SIDEWAYS
    except Exception:  # decoders raise nearly every type; `readable` tells what is wrong
        return 0, 0
    return (height, width) if sideways else (width, height)


class Finder:
    """Finds the pictures that a table means by the paths in it, which may begin elsewhere than the data set does."""

    def __init__(self, folder: Path, pictures: Iterable[Path]) -> None:
        self.folder = folder
        self.places = {_steps(str(path.relative_to(folder))): path for path in pictures}
        self.named: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self.without_suffix: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for steps in self.places:
            for name in {steps[-1], steps[-1].casefold()}:
                self.named[name].append(steps)
            self.without_suffix[Path(steps[-1]).stem.casefold()].append(steps)

    def find(self, names: Iterable[str], table: Path) -> dict[str, Path]:
        """The picture of each name of a table; what has none is left out, and told.

        A name that stands at its place, from the table's folder or the data set's, is that picture. Of others as many
        of the last steps count as agree; a name that the table has in several folders needs its folder to agree, too.
        A name may differ in the letters' case, and lack its suffix. What lies in another part than name or table
        tell is another picture. Raises DataError where two pictures would do.
        """
        wanted = {name: steps for name in dict.fromkeys(names) if (steps := _steps(name))}
        often = Counter(steps[-1] for steps in set(wanted.values()))
        found: dict[str, Path] = {}
        for name, steps in wanted.items():
            path = self._at_its_place(steps, table) or self._alike(name, steps, table, often[steps[-1]] > 1)
            if path is not None:
                found[name] = path
        tell_left_out(f"names in {table} without a picture", [name for name in wanted if name not in found])
        claimed: dict[Path, str] = {}
        for name, path in found.items():
            if claimed.setdefault(path, name) != name and wanted[claimed[path]] != wanted[name]:
                raise DataError(f"{table}: both {claimed[path]!r} and {name!r} would be {path}: name them as they lie.")
        return found

    def _at_its_place(self, steps: tuple[str, ...], table: Path) -> Path | None:
        near = table.parent.relative_to(self.folder).parts
        for start in (near, (*near, "images"), near[:-1], (*near[:-1], "images"), (), ("images",)):
            if (path := self.places.get((*start, *steps))) is not None:
                return path
        return None

    def _alike(self, name: str, steps: tuple[str, ...], table: Path, often: bool) -> Path | None:
        last = steps[-1]
        alike = self.named[last] or self.named[last.casefold()] or self.without_suffix[last.casefold()]
        agree = {other: _agreeing(steps[:-1], other[:-1]) for other in alike}
        if often and len(steps) > 1:
            alike = [other for other in alike if agree[other]]
        parts = {other: part_above(self.places[other], self.folder) for other in alike}
        if part := _first_part([*steps[:-1], table.stem, *table.relative_to(self.folder).parts[:-1]]):
            alike = [other for other in alike if parts[other] in (part, None)]
        best = [other for other in alike if agree[other] == max(agree[each] for each in alike)]
        if len(best) > 1:
            best = [other for other in best if parts[other] == part] or best
        if len(best) > 1:
            one, other = sorted(self.places[each] for each in best)[:2]
            raise DataError(f"{table}: {name!r} may be {one} or {other}: name its folder, too.")
        return self.places[best[0]] if best else None


def _steps(name: str) -> tuple[str, ...]:
    """A path's steps, also of one that Windows has written: C:\\data\\a.jpg."""
    return tuple(step for step in composed(name).replace("\\", "/").split("/") if step not in ("", ".", ".."))


def _agreeing(steps: Sequence[str], others: Sequence[str]) -> int:
    """How many last steps are the same."""
    count = 0
    for one, other in zip(reversed(steps), reversed(others), strict=False):
        if one.casefold() != other.casefold():
            break
        count += 1
    return count
