"""What was inferred once: kept in SQLite by the picture's digest and by all else that the answer depends on."""

import asyncio
import os
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

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
        self._pictures: dict[bytes, PictureFacts] = {}
        self._answers: dict[tuple[bytes, int], bytes] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._flushed = monotonic()

    def picture(self, digest: bytes) -> PictureFacts | None:
        if new := self._pictures.get(digest):
            return new
        query = "select width, height, quality from pictures where sha256 = ? and key = ?"
        row = self._row(query, digest, self._pixels)
        return PictureFacts((row[0], row[1]), Quality.model_validate_json(row[2])) if row else None

    def answer(self, digest: bytes, question: int) -> bytes | None:
        """Return what was answered to the question with this index, as JSON."""
        key = self._keys[question]
        kept: bytes | None = self._answers.get((digest, key))
        if kept is None and (row := self._row("select answer from answers where sha256 = ? and key = ?", digest, key)):
            kept = row[0]
        return zlib.decompress(kept) if kept else None

    def keep(self, digest: bytes, picture: PictureFacts, answers: dict[int, bytes]) -> None:
        """Keep what is new of a picture; answers are JSON by their question's index."""
        self._pictures[digest] = picture
        for question, answer in answers.items():
            self._answers[digest, self._keys[question]] = zlib.compress(answer, 1)
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

    def _row(self, query: str, digest: bytes, key: int) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._read.execute(query, (digest, key)).fetchone()
        except sqlite3.Error as error:
            raise EndedError(f"The cache {self._path} cannot be read: {error}. Remove it, or name another.") from error
        return row

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
                [(digest, key, answer) for (digest, key), answer in answers.items()],
            )
