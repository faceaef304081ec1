"""Colour profiles made from their definitions, and pictures stored in them (ICC.1:2001-04, version 2)."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

SPACES: dict[str, tuple[Sequence[tuple[float, float]], tuple[float, float], float | None]] = {
    # Primaries red, green, blue and white, xy; gamma, None is sRGB's curve.
    "sRGB": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, None),
    "Display P3": (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65, None),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 563 / 256),
    "ProPhoto RGB": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585), 1.8),
}


def matrix(name: str) -> Array:
    """Linear RGB of a space -> XYZ under D50."""
    primaries, white, _ = SPACES[name]
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = white
    given = np.array([x / y, 1, (1 - x - y) / y])
    adapted = np.diag((BRADFORD @ D50) / (BRADFORD @ given))
    return np.linalg.inv(BRADFORD) @ adapted @ BRADFORD @ columns * np.linalg.solve(columns, given)


def linear(levels: Array, gamma: float | None) -> Array:
    if gamma:
        return levels**gamma
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def stored(light: Array, gamma: float | None) -> Array:
    light = light.clip(0, 1)
    if gamma:
        return np.asarray(light ** (1 / gamma))
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_space(picture: Image.Image, name: str) -> Image.Image:
    """The same colours, of an sRGB picture, stored in another space."""
    light = linear(np.asarray(picture) / 255, None) @ (np.linalg.solve(matrix(name), matrix("sRGB"))).T
    return Image.fromarray((stored(light, SPACES[name][2]) * 255).round().astype(np.uint8))


def rgb_profile(name: str) -> bytes:
    columns, curve = matrix(name).T, _curve(SPACES[name][2])
    tags = {b"rXYZ": _xyz(columns[0]), b"gXYZ": _xyz(columns[1]), b"bXYZ": _xyz(columns[2])}
    return profile(b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(gamma: float | None) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile(gamma: float, grid: int = 9) -> bytes:
    """Inks whose light, in sRGB's primaries, is ((1 - ink) * (1 - black)) ** gamma."""
    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, grid)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    xyz = ((1 - inks[:, :3]) * (1 - inks[:, 3:])) ** gamma @ matrix("sRGB").T / D50
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)
    coded = (lab + np.array([0, 128, 128])) * [0xFF00 / 100, 256, 256]
    table = b"mft2\0\0\0\0" + bytes([4, 3, grid, 0]) + struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    table += struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65535) * 4
    table += coded.clip(0, 65535).round().astype(">u2").tobytes() + struct.pack(">HH", 0, 65535) * 3
    return profile(b"CMYK", b"Lab ", {b"A2B0": table}, b"prtr")


def in_inks(picture: Image.Image, gamma: float) -> Image.Image:
    """An sRGB picture for cmyk_profile(gamma), half of its darkness as black."""
    light = linear(np.asarray(picture) / 255, None) ** (1 / gamma)
    black = (1 - light.max(axis=2, keepdims=True)) / 2
    inks = np.concatenate([1 - light / (1 - black), black], axis=2)
    return Image.frombytes("CMYK", picture.size, (inks * 255).round().clip(0, 255).astype(np.uint8).tobytes())


def profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {b"wtpt": _xyz(D50), b"desc": b"desc" + struct.pack(">II", 0, 2) + b"t\0" + bytes(78), **tags}
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(body), b"test", 0x02400000, kind, space, connection, bytes(12), b"acsp"
    )
    return head + bytes(28) + _numbers(D50) + bytes(48) + table + body


def _curve(gamma: float | None) -> bytes:
    points: Any = linear(np.linspace(0, 1, 1024), gamma) * 65535
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + points.round().astype(">u2").tobytes()


def _xyz(values: Array) -> bytes:
    return b"XYZ \0\0\0\0" + _numbers(values)


def _numbers(values: Array) -> bytes:
    return struct.pack(">3i", *(values * 65536).round().astype(int))
