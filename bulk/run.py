"""A run: fixed at its start, written a shard at a time, gone on with by the same command."""

import asyncio
import json
import os
import platform
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any

import vision
from bulk import EndedError, UserError, lists, rows
from bulk.addresses import Entry, without_secrets
from bulk.listing import Columns, listing
from bulk.lists import List
from bulk.places import Place
from bulk.progress import Progress
from bulk.questions import Wanted
from bulk.rows import MANIFEST, Format, Row
from bulk.score import Scorer
from vision.core.errors import KINDS, Code
from vision.core.images import PIXELS
from vision.core.schemas import Card, Model

LIBRARIES = ("openvino", "torch", "transformers", "pillow", "pyarrow")


@dataclass
class Run:
    """A run that was begun: its list, and what is written of it."""

    place: Place
    manifest: dict[str, Any]
    listed: List
    format: Format
    done: set[int]
    """Shards that are whole."""
    errors: Counter[str]
    """Of those, by code."""
    resumed: bool
    again: dict[int, int] = field(default_factory=dict)
    """Shards that are whole and are scored again, and how many rows of each."""

    def todo(self) -> list[int]:
        return [index for index in range(self.listed.shards) if index not in self.done]

    def left(self) -> int:
        """Return how many pictures are to be scored."""
        return sum(self.again.get(index) or self.listed.size(index) for index in self.todo())

    def shard(self, index: int) -> "Shard":
        entries = self.listed.shard(index)
        ids = [entry.id for entry in entries]
        before = rows.read(self.place, index, self.format, ids, None) if index in self.again else []
        return Shard(index, entries, before)

    def write(self, index: int, some: Sequence[Row]) -> None:
        """Put a shard. Raises EndedError."""
        try:
            self.place.write(rows.part(index, self.format), self.format.encode(some))
        except OSError as error:
            raise EndedError(f"{self.place.name} cannot be written: {error.strerror or error}.") from error

    def took(self, index: int, errors: Counter[str]) -> Counter[str]:
        """Take a shard as done, with errors by code; return these."""
        self.done.add(index)
        self.errors.update(errors)
        return errors

    def finish(self) -> None:
        told = {"finished": _now(), "errors": dict(+self.errors), "shards_done": len(self.done)}
        self.place.write(MANIFEST, _json(self.manifest | told))


def asked(photos: str, wanted: Sequence[Wanted], format: str, shard_rows: int) -> dict[str, Any]:
    """Return what a run is asked, which the same command asks again."""
    features = {one.word: {"model": one.tag, "options": one.options.model_dump()} for one in wanted}
    return {"photos": without_secrets(photos), "features": features, "format": format, "shard_rows": shard_rows}


def begin(
    place: Place,
    photos: str,
    columns: Columns,
    wanted: Sequence[Wanted],
    format: str,
    shard_rows: int,
    cards: Mapping[str, Card],
) -> Run:
    """Begin a run in a place, or go on with what is there; cards: of the models, by the features' words.

    Raises UserError; then nothing was written.
    """
    question = asked(photos, wanted, format, shard_rows)
    names = set(place.names())
    resumed = MANIFEST in names
    if resumed:
        manifest = _same(place, question)
    else:
        if strange := sorted(name for name in names if not name.startswith("_")):
            raise UserError(f"{place.name} holds {strange[0]} and no {MANIFEST}: name an empty place.")
        manifest = _new(place, photos, columns, question, cards)
    run = open_(place, manifest, wanted, resumed)
    for index in range(run.listed.shards):
        if rows.part(index, run.format) in names:
            some = rows.read(place, index, run.format, run.listed.ids(index), ["id", "status", "error"])
            run.took(index, codes(some))
    return run


def open_(place: Place, manifest: dict[str, Any], wanted: Sequence[Wanted], resumed: bool = True) -> Run:
    """Open a run that was begun, with none of its shards done yet. Raises UserError."""
    listed = List(place)
    columns = rows.schema({one.word: one.task.result for one in wanted}, listed.carried)
    format = rows.FORMATS[manifest["asked"]["format"]](columns)
    return Run(place, manifest, listed, format, set(), Counter(), resumed)


def read_manifest(place: Place) -> dict[str, Any]:
    """Read what a run was asked. Raises UserError."""
    try:
        with place.read(MANIFEST) as file:
            told: dict[str, Any] = json.load(file)
        told["asked"], told["started"]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{place.name}/{MANIFEST} is damaged: {error}") from error
    return told


def _same(place: Place, question: dict[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(place)
    before = manifest["asked"]
    for name, value in question.items():
        if before.get(name) != value:
            raise UserError(
                f"{place.name} holds a run with other {name} ({json.dumps(before.get(name))}): name another place."
            )
    return manifest


def _new(
    place: Place, photos: str, columns: Columns, question: dict[str, Any], cards: Mapping[str, Card]
) -> dict[str, Any]:
    found = listing(photos, columns)
    try:
        with place.bring(lists.NAME) as path:
            count = lists.write(path, found, question["shard_rows"])
        manifest = {
            "asked": question,
            "models": {word: dict(Model.of(card)) for word, card in cards.items()},
            "pictures": count,
            "skipped": dict(found.skipped),
            "started": _now(),
            "versions": {
                "vision": vision.__version__,
                "pixels": PIXELS,
                **vision.installed(*LIBRARIES),
            },
            "machine": {"name": platform.node(), "processor": platform.machine(), "cores": os.cpu_count()},
        }
        place.write(MANIFEST, _json(manifest))
    except OSError as error:
        raise UserError(f"{place.name} cannot be written: {error.strerror or error}.") from error
    return manifest


def retry_errors(run: Run) -> None:
    """Take the shards that hold retryable errors as not done."""
    for index in sorted(run.done):
        some = rows.read(run.place, index, run.format, run.listed.ids(index), ["id", "status", "error"])
        if retryable := sum(map(is_retryable, some)):
            run.again[index] = retryable
            run.done.remove(index)
            run.errors.subtract(codes(some))


def is_retryable(row: Row) -> bool:
    return row["status"] == "error" and KINDS[Code(row["error"]["code"])].retryable


class Shard:
    """A shard in work: its rows, and holes where they are missing yet."""

    def __init__(self, index: int, entries: Sequence[Entry], before: Sequence[Row]) -> None:
        """before: what a shard that is scored again holds; only its retryable rows are missing then."""
        self.index = index
        self.rows: list[Row | None] = [None if is_retryable(row) else row for row in before] or [None] * len(entries)
        self.holes = deque(at for at, row in enumerate(self.rows) if row is None)
        self.missing = [entries[at] for at in self.holes]

    def fill(self, row: Row) -> None:
        self.rows[self.holes.popleft()] = row


async def score(run: Run, scorer: Scorer, progress: Progress) -> None:
    """Score all shards that are not done, or those that are until somebody ends it.

    Ctrl-C or SIGTERM ends it after the shard in work; a second one at once. Raises EndedError.
    """
    stop = asyncio.Event()
    on_signals(stop, progress)
    async for _ in shards(run, scorer, takewhile(lambda _: not stop.is_set(), run.todo()), progress.count):
        pass


async def shards(
    run: Run, scorer: Scorer, indices: Iterable[int], count: Callable[[Row], object] = id
) -> AsyncIterator[tuple[Shard, Counter[str]]]:
    """Score shards, and yield each with its errors by code once it is put. Raises EndedError."""
    begun = deque[Shard]()

    def entries() -> Iterator[Entry]:
        for index in indices:
            begun.append(run.shard(index))
            yield from begun[-1].missing

    async def put(shard: Shard) -> tuple[Shard, Counter[str]]:
        some = [row for row in shard.rows if row is not None]
        await asyncio.to_thread(run.write, shard.index, some)
        return shard, run.took(shard.index, codes(some))

    putting: asyncio.Task[tuple[Shard, Counter[str]]] | None = None
    async for row in scorer.rows(entries()):
        begun[0].fill(row)
        count(row)
        scorer.check()
        if not begun[0].holes:
            if putting:
                yield await putting
            putting = asyncio.create_task(put(begun.popleft()))
    if putting:
        yield await putting


def on_signals(stop: asyncio.Event, progress: Progress) -> None:
    """Let Ctrl-C or SIGTERM set the event, and a second one end the process."""

    def on_signal() -> None:
        if stop.is_set():
            progress.close()
            os._exit(130)
        stop.set()
        progress.say("Ends after the shard in work; once more to end now. The same command goes on.")

    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, on_signal)


def codes(some: Sequence[Row]) -> Counter[str]:
    return Counter(row["error"]["code"] for row in some if row["status"] == "error")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
