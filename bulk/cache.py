"""What was inferred once: kept in SQLite by the picture's digest and by all else that the answer depends on."""

import asyncio
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from bulk import EndedError, UserError
from vision.core.images import PIXELS
from vision.core.schemas import Quality

TABLES = """
pragma journal_mode = wal;
pragma synchronous = normal;
create table if not exists keys (id integer primary key, key text unique not null);
create table if not exists pictures (
    sha256 blob, key integer, width integer, height integer, quality text, primary key (sha256, key)
) without rowid;
create table if not exists answers (sha256 blob, key integer, answer blob, primary key (sha256, key)) without rowid;
"""

PIXELS_KEY = f"pixels {PIXELS}"
"""What all that is kept depends on besides."""

FLUSH_SECONDS = 2
"""After which what is new is written; so much work is done again after a crash."""


class PictureFacts(NamedTuple):
    """What is known of a picture whatever it is asked."""

    size: tuple[int, int]
    quality: Quality


def usual() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vision" / "answers.sqlite"


class Cache:
    """Of one event loop. Several processes may use one file."""

    def __init__(self, path: Path, pixels: str, keys: Sequence[str]) -> None:
        """pixels: what pictures themselves depend on; keys: one a question, in their order. Raises UserError."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read, self._write = (sqlite3.connect(path, 60, check_same_thread=False) for _ in range(2))
            self._write.executescript(TABLES)
            with self._write:
                self._write.executemany(
                    "insert or ignore into keys (key) values (?)", [(key,) for key in (pixels, *keys)]
                )
            found = dict(self._read.execute("select key, id from keys"))
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"The cache {path} cannot be used: {error}. Remove it, or name another: --cache."
            ) from error
        self._pixels: int = found[pixels]
        self._keys: list[int] = [found[key] for key in keys]
        places = ", ".join("?" * len(self._keys))
        self._query = f"""
            select width, height, quality, answers.key, answer from pictures
            left join answers on answers.sha256 = pictures.sha256 and answers.key in ({places})
            where pictures.sha256 = ? and pictures.key = ?
        """  # noqa: S608 (nothing but question marks)
        self._pictures: dict[bytes, PictureFacts] = {}
        self._answers: dict[tuple[bytes, int], bytes] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._flushed = monotonic()

    def find(self, digest: bytes) -> tuple[PictureFacts | None, dict[int, bytes]]:
        """Return what is kept of a picture, and each answer about it, as JSON by its question's index."""
        answers = {
            index: new for index, key in enumerate(self._keys) if (new := self._answers.get((digest, key))) is not None
        }
        if picture := self._pictures.get(digest):
            return picture, answers
        try:
            rows = self._read.execute(self._query, (*self._keys, digest, self._pixels)).fetchall()
        except sqlite3.Error as error:
            raise EndedError(f"The cache {self._path} cannot be read: {error}. Remove it, or name another.") from error
        for width, height, quality, key, answer in rows:
            picture = picture or PictureFacts((width, height), Quality.model_validate_json(quality))
            if key is not None:
                answers[self._keys.index(key)] = zlib.decompress(answer)
        return picture, answers

    def keep(self, digest: bytes, picture: PictureFacts, answers: dict[int, bytes]) -> None:
        """Keep what is new of a picture; answers are JSON by their question's index."""
        self._pictures[digest] = picture
        for question, answer in answers.items():
            self._answers[digest, self._keys[question]] = answer
        now = monotonic()
        if now > self._flushed + FLUSH_SECONDS and (self._flushing is None or self._flushing.done()):
            self._flushed = now
            self._flushing = asyncio.create_task(self._flush())

    async def close(self) -> None:
        """Write what is left. Raises EndedError."""
        if self._flushing:
            await self._flushing
        await self._flush()
        self._read.close()
        self._write.close()

    def check(self) -> None:
        """Raises EndedError if writing failed."""
        if self._flushing and self._flushing.done():
            self._flushing.result()

    async def _flush(self) -> None:
        pictures, answers = self._pictures.copy(), self._answers.copy()
        await asyncio.to_thread(self._put, pictures, answers)
        for digest in pictures:
            self._pictures.pop(digest)
        for key in answers:
            self._answers.pop(key)

    def _put(self, pictures: dict[bytes, PictureFacts], answers: dict[tuple[bytes, int], bytes]) -> None:
        try:
            self._insert(pictures, answers)
        except sqlite3.Error as error:
            raise EndedError(f"The cache {self._path} cannot be written: {error}.") from error

    def _insert(self, pictures: dict[bytes, PictureFacts], answers: dict[tuple[bytes, int], bytes]) -> None:
        with self._write:
            self._write.executemany(
                "insert or replace into pictures values (?, ?, ?, ?, ?)",
                [(digest, self._pixels, *one.size, one.quality.model_dump_json()) for digest, one in pictures.items()],
            )
            self._write.executemany(
                "insert or replace into answers values (?, ?, ?)",
                [(digest, key, zlib.compress(answer, 1)) for (digest, key), answer in answers.items()],
            )
