"""Broken pictures: real files whole, cut short and mutated, the same ones for the same seed."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from random import Random

from PIL import Image

from testkit.photographs import PHOTOS, SHARED, encoded

CUTS = 10
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "PPM", "TGA", "ICO")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK")


def corpus() -> list[bytes]:
    """Every file of the corpora in ../shared; where they are not, photographs and pictures made here."""
    if SHARED.is_dir():
        return [path.read_bytes() for path in sorted((SHARED / "corpora").rglob("*")) if path.is_file()]
    return [*(path.read_bytes() for path in PHOTOS.values()), *made()]


def made() -> list[bytes]:
    """A small picture in each format and mode that go together, plain and as an animation."""
    noise = Image.frombytes("RGB", (40, 30), Random(0).randbytes(40 * 30 * 3))
    pictures = []
    for format, mode, animated in itertools.product(FORMATS, MODES, (False, True)):
        still = noise.convert("L").convert(mode)
        frames = {"save_all": True, "append_images": [still.transpose(Image.Transpose.ROTATE_180)]} if animated else {}
        try:
            pictures.append(encoded(still, format, **frames))
        except (KeyError, OSError, ValueError):  # the format has no such mode, or no animations
            continue
    return pictures


def cases(files: Sequence[bytes], mutations: int, seed: int = 0) -> Iterator[bytes]:
    """Yield each file whole and cut at ten places, then `mutations` mutated ones."""
    for file in files:
        yield file
        for cut in range(CUTS):
            yield file[: len(file) * cut // CUTS]
    random = Random(seed)
    for _ in range(mutations):
        data = random.choice(files)
        for _ in range(random.randint(1, 3)):
            data = random.choice(MUTATIONS)(random, data, random.choice(files))
        yield data


def _flip_bytes(random: Random, data: bytes, _other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 4, 32)) if data else 0):
        changed[_place(random, data)] = random.randrange(256)
    return bytes(changed)


def _repeat_chunk(random: Random, data: bytes, _other: bytes) -> bytes:
    start = _place(random, data)
    end = start + random.choice((4, 64, 4096))
    return data[:end] + data[start:end] * random.choice((1, 2, 50)) + data[end:]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(random, data)] + other[_place(random, other) :]


def _change_length(random: Random, data: bytes, _other: bytes) -> bytes:
    """Write an extreme number where a length or a size may stand."""
    size = random.choice((1, 2, 4))
    number = random.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), random.randrange(2 ** (8 * size))))
    start = _place(random, data)
    return data[:start] + number.to_bytes(size, random.choice(("little", "big"))) + data[start + size :]


MUTATIONS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (_flip_bytes, _repeat_chunk, _splice, _change_length)


def _place(random: Random, data: bytes) -> int:
    """A place in the data, every other time among the first bytes, where headers are."""
    end = len(data) if random.random() < 0.5 else min(len(data), 200)
    return random.randrange(max(1, end))
