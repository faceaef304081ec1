"""Pictures in, rows out, in their order: read, looked up, decoded and asked beside each other."""

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

from bulk import EndedError, addresses
from bulk.addresses import Entry
from bulk.cache import Cache, PictureFacts
from bulk.questions import Asked
from bulk.rows import Row
from vision.core import subject
from vision.core.decoders import Decoders
from vision.core.engine import DeviceLostError
from vision.core.errors import Code, VisionError
from vision.core.images import Limits
from vision.core.look import MAX_BATCH, Question, Use, look
from vision.core.queues import Result

AT_ONCE = 6 * MAX_BATCH
"""Pictures in work: some wait decoded before each model while others are read and decoded."""

READERS = 16
"""Threads that read pictures: of a share or an object store, reading takes long and no core."""

VANISHED = 100
"""Pictures in a row that cannot be read: then their source is gone, and not they."""

DECODE_SECONDS = 60
"""As the service's: decoding that takes longer is the picture's failure."""

ALL = "bulk"


class Known(NamedTuple):
    """What is known of a picture: an error is of its own, or stands in a question's place."""

    picture: PictureFacts | None
    results: dict[str, Result]
    error: VisionError | None


class Scorer:
    """Scores pictures with models in this process. Of one event loop."""

    def __init__(
        self,
        asked: Sequence[Asked],
        cache: Cache | None,
        limits: Limits,
        stall_seconds: float,
        threads: int = os.cpu_count() or 1,
        batch: int = MAX_BATCH,
    ) -> None:
        self._asked, self._cache, self._stall = asked, cache, stall_seconds
        self._decoders = Decoders(threads, limits, pixels=2**62, seconds=DECODE_SECONDS)
        self._readers = ThreadPoolExecutor(READERS)
        self._batch, self._decoding, self._decoded, self._full = batch, 0, 0, asyncio.Event()
        self._in_work: dict[bytes, asyncio.Future[Known]] = {}
        self.known = 0
        """Pictures of which nothing had to be inferred."""
        self._unread = 0

    async def close(self) -> None:
        self._decoders.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
        if self._cache:
            await self._cache.close()

    def check(self) -> None:
        """Raises EndedError where the cache cannot be written."""
        if self._cache:
            self._cache.check()

    async def rows(self, entries: Iterable[Entry]) -> AsyncIterator[Row]:
        """Yield a row an entry, in their order. Raises EndedError where the source is gone or does not answer."""
        ahead = deque[asyncio.Task[Row]]()
        try:
            for entry in entries:
                if len(ahead) == AT_ONCE:
                    yield self._counted(await ahead.popleft())
                ahead.append(asyncio.create_task(self._row(entry)))
            while ahead:
                yield self._counted(await ahead.popleft())
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    def _counted(self, row: Row) -> Row:
        """Count how many in a row cannot be read. Raises EndedError."""
        self._unread = 0 if row.get("sha256") is not None else self._unread + 1
        if self._unread == VANISHED:
            why = row["error"]["message"]
            raise EndedError(f"{VANISHED} pictures in a row cannot be read, the last is {row['uri']}: {why}")
        return row

    async def _row(self, entry: Entry) -> Row:
        start = perf_counter()
        row: Row = {"id": entry.id, "group": entry.group, "uri": entry.uri}
        if entry.carried is not None:
            row["carried"] = entry.carried
        try:
            data, digest = await self._read(entry)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return row | _failed(VisionError(Code.UNAVAILABLE, f"The picture cannot be read: {why}."))
        row |= {"sha256": digest.hex(), "bytes": len(data)}
        try:
            known = await self._known(digest, data)
        except DeviceLostError as error:
            raise EndedError(f"{error}.") from error
        return row | self._told(known) | {"ms": round((perf_counter() - start) * 1000, 2)}

    async def _read(self, entry: Entry) -> tuple[bytes, bytes]:
        def read() -> tuple[bytes, bytes]:
            data = addresses.read(entry)
            return data, hashlib.sha256(data).digest()

        work = asyncio.get_running_loop().run_in_executor(self._readers, read)
        done, _ = await asyncio.wait([work], timeout=self._stall)
        if not done:
            raise EndedError(f"{entry.uri} did not answer within {self._stall:g} s.")
        return work.result()

    async def _known(self, digest: bytes, data: bytes) -> Known:
        """Look at a picture once, however many copies of it are in work."""
        if digest in self._in_work:
            return await self._in_work[digest]
        future = self._in_work[digest] = asyncio.get_running_loop().create_future()
        try:
            known = await self._look(digest, data)
            future.set_result(known)
        finally:
            future.cancel()  # no-op once it has its result
            del self._in_work[digest]
        return known

    async def _look(self, digest: bytes, data: bytes) -> Known:
        picture, results = self._kept(digest)
        missing = {
            one.wanted.word: Question(one.model, one.wanted.wide, one.wanted.head_of)
            for one in self._asked
            if one.wanted.word not in results and not _shows_nobody(results.get(one.wanted.head_of or ""))
        }
        if picture and not missing:
            self.known += 1
            return Known(picture, results, None)
        seen = await look(data, missing, decode=self._decode, measures=picture is None, known=results)
        if isinstance(seen, VisionError):
            return Known(picture, results, seen)
        picture = picture or (PictureFacts(seen.size, seen.quality) if seen.quality else None)
        self._keep(digest, picture, seen.results)
        return Known(picture, results | seen.results, None)

    async def _decode(self, data: bytes, use: Use) -> Any:
        """Decode a picture, and hold it until there is a batch of them or no other one is being decoded.

        Models would be asked of each as it comes where decoding takes longer: one costs them more than in a batch.
        """
        self._decoding += 1
        try:
            shown = await self._decoders.run(ALL, data, use)
        finally:
            self._decoding -= 1
            self._decoded += 1
            full = self._full
            if self._decoded >= self._batch or not self._decoding:
                full.set()
                self._decoded, self._full = 0, asyncio.Event()
        await full.wait()
        return shown

    def _kept(self, digest: bytes) -> tuple[PictureFacts | None, dict[str, Result]]:
        if self._cache is None:
            return None, {}
        picture, answers = self._cache.find(digest)
        asked = {index: self._asked[index].wanted for index in answers}
        return picture, {one.word: one.task.result.model_validate_json(answers[index]) for index, one in asked.items()}

    def _keep(self, digest: bytes, picture: PictureFacts | None, results: dict[str, Result]) -> None:
        if self._cache is None or picture is None:
            return
        answers = {}
        for index, one in enumerate(self._asked):
            result = results.get(one.wanted.word)
            if result is not None and not isinstance(result, VisionError):
                answers[index] = result.model_dump_json().encode()
        self._cache.keep(digest, picture, answers)

    def _told(self, known: Known) -> Row:
        """Return a row's columns of what is known: each question's answer as it was wanted."""
        told: Row = {"status": "ok"}
        errors = [known.error] if known.error else []
        if known.picture:
            (told["width"], told["height"]), quality = known.picture
            told["quality"] = dict(quality)
        for one in self._asked:
            word, task = one.wanted.word, one.wanted.task
            match known.results.get(word):
                case VisionError() as error:
                    errors.append(VisionError(error.code, f"{word}: {error.message}"))
                case None:
                    pass
                case result:
                    told[word] = task.narrow(result, one.wanted.options).model_dump()
        return told | _failed(errors[0]) if errors else told


def _shows_nobody(found: Result | None) -> bool:
    """Whether objects are known, and nobody among them has a head to ask about."""
    return found is not None and subject.main(getattr(found, "objects", ())) is None


def _failed(error: VisionError) -> Row:
    return {"status": "error", "error": {"code": str(error.code), "message": error.message}}
