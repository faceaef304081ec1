"""A run by several processes of this machine: workers read, decode and put shards, and one process a GPU runs models.

In one process Python's lock lets hardly more than two cores work: a GPU would wait for pictures. A worker takes whole
shards, as an actor of a cluster does; its pixels go to the models over a socket.
"""

import asyncio
import logging
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

from pydantic_core import from_json

from bulk import EndedError, UserError, cache, questions, run
from bulk.places import place
from bulk.progress import Progress
from bulk.questions import Wanted
from bulk.run import Run
from bulk.score import Scorer
from vision.bento import store
from vision.core import device, frames
from vision.core.decoders import keep_freed_memory
from vision.core.engine import DeviceLostError
from vision.core.errors import VisionError
from vision.core.images import Limits
from vision.core.look import ServedModel
from vision.core.predictor import predict_each
from vision.core.queues import Queue, Result
from vision.core.schemas import Item, Pixels

SPAWN = get_context("spawn")
"""A copy of this process would have the locks of its threads, and could not use a GPU."""


@dataclass(frozen=True)
class Order:
    """What each worker is told. cache: None where nothing is kept."""

    out: str
    wanted: tuple[Wanted, ...]
    cache: Path | None
    limits: Limits
    stall_seconds: float


class Facts(NamedTuple):
    """What a worker must know of a model that runs elsewhere: as of a loaded one."""

    most: int
    runs: str


class Next(NamedTuple):
    """A worker asks for a shard; the answer is its index, or None where none is left."""


class Put(NamedTuple):
    """A shard that a worker has put: how many pictures it scored for it, the shard's errors, how many it knew."""

    shard: int
    pictures: int
    errors: Counter[str]
    known: int


class Left(NamedTuple):
    """A worker's last word. ended: why it cannot go on."""

    ended: str | None


def default(wanted: Sequence[Wanted], setting: str) -> int:
    """Return how many workers feed the GPUs: a core each, which is all that one uses; none without a GPU."""
    gpus = sum(name.startswith("cuda") for name in devices(wanted, setting))
    return max(1, device.cores() - gpus) if gpus else 0


def devices(wanted: Sequence[Wanted], setting: str) -> list[str]:
    """Return which processes run models, by their devices: one a GPU, or one where the setting says more."""
    if setting in ("auto", "cuda") and any(device.likely_gpu(setting, one.task.name) for one in wanted):
        return [f"cuda:{index}" for index in range(len(device.DRIVER.gpus()))] or [setting]
    return [setting]


class Models:
    """The processes that run models, each behind a socket; they end with the block, or with this process."""

    def __init__(self, wanted: Sequence[Wanted], setting: str, engines: Path | None) -> None:
        self._wanted, self._devices, self._engines = wanted, devices(wanted, setting), engines
        self._stack = ExitStack()
        self.sockets: list[Path] = []
        self.facts: list[dict[str, Facts]] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Self:
        """Raises UserError where a model cannot be loaded."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="vision-")))
            for index, name in enumerate(self._devices):
                self.sockets.append(folder / str(index))
                self._pipes.append(self._start(stack, name, self.sockets[-1]))
            self.facts = [_loaded(pipe) for pipe in self._pipes]
            self._stack = stack.pop_all()
        return self

    def _start(self, stack: ExitStack, name: str, socket: Path) -> Connection:
        ours, theirs = SPAWN.Pipe(duplex=False)
        arguments = (self._wanted, name, self._engines, socket, theirs)
        process = SPAWN.Process(target=run_models, args=arguments, daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join)
        stack.callback(process.terminate)
        return ours

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def lost(self) -> str | None:
        """Return why a process that ran models ended, if one has said so."""
        for pipe in self._pipes:
            if pipe.poll():
                try:
                    return str(pipe.recv())
                except EOFError:
                    return "A process that ran models ended."
        return None


def _loaded(pipe: Connection) -> dict[str, Facts]:
    try:
        said: dict[str, Facts] | UserError = pipe.recv()
    except EOFError:
        raise UserError("A process that was to run models ended while it loaded them.") from None
    if isinstance(said, UserError):
        raise said
    return said


def run_models(wanted: Sequence[Wanted], where: str, engines: Path | None, socket: Path, pipe: Connection) -> None:
    """Load models, tell what is to be known of them, and answer until this process is ended."""
    _be_a_child()
    try:
        loaded = questions.load_each(wanted, where, engines)
    except UserError as error:
        tell(pipe, error)
        return
    options = {one.tag: one.task.options for one in wanted}
    threads = {tag: ThreadPoolExecutor(2) for tag in loaded}

    async def predict(tag: str, items: Sequence[Item[Any]]) -> Sequence[Result]:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(threads[tag], predict_each, loaded[tag].model, items)
        except DeviceLostError as error:
            tell(pipe, f"{where}: {error}.")
            os._exit(1)

    async def answer(text: bytes, pixels: Pixels) -> bytes:
        call = from_json(text)
        return await frames.answer(call, pixels, options[call["method"]], predict)

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_unix_server(partial(frames.Calls, answer), socket)
        tell(pipe, {tag: Facts(one.most, one.runs) for tag, one in loaded.items()})
        await server.serve_forever()

    asyncio.run(serve())


async def score(begun: Run, order: Order, models: Models, workers: int, progress: Progress) -> int:
    """Score what a run has left; return how many pictures were known before. Raises EndedError.

    Ctrl-C or SIGTERM ends it after the shards in work; a second one at once.
    """
    begun.manifest["workers"] = workers
    todo = deque(begun.todo())
    stop = asyncio.Event()
    run.on_signals(stop, progress)
    told = Told(begun, todo, progress, stop)
    following = []
    for index in range(min(workers, len(todo))):
        ours, theirs = SPAWN.Pipe()
        at = index % len(models.sockets)
        arguments = (order, models.facts[at], models.sockets[at], begun.again, theirs)
        worker = SPAWN.Process(target=work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        following.append(told.follow(worker, ours))
    await asyncio.gather(*following)
    if told.ended:
        raise EndedError(models.lost() or told.ended)
    return told.known


class Told:
    """What workers have told, and what is left for them. One that cannot go on ends the run."""

    def __init__(self, begun: Run, todo: deque[int], progress: Progress, stop: asyncio.Event) -> None:
        self._run, self._todo, self._progress, self._stop = begun, todo, progress, stop
        self.known = 0
        self.ended: str | None = None

    async def follow(self, worker: Any, pipe: Connection) -> None:
        """Listen to a worker until it has ended."""
        left: Left | None = None
        async for said in _received(pipe):
            match said:
                case Next():
                    with suppress(OSError):  # it was killed meanwhile; the pipe tells so next
                        pipe.send(self._todo.popleft() if self._todo and not self._stop.is_set() else None)
                case Put():
                    self._run.took(said.shard, said.errors)
                    self._progress.add(said.pictures, said.errors)
                    self.known += said.known
                case Left():
                    left = said
        await asyncio.to_thread(worker.join)
        if left is None:
            left = Left(f"A worker ended with exit code {worker.exitcode}.")
        if left.ended:
            self.ended = self.ended or left.ended
            self._stop.set()


async def _received(pipe: Connection) -> AsyncIterator[Any]:
    """Yield what comes through a pipe until its other end is closed, or was killed."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            yield pipe.recv()
    except (EOFError, OSError):
        return
    finally:
        loop.remove_reader(pipe.fileno())


def work(order: Order, facts: Mapping[str, Facts], socket: Path, again: dict[int, int], pipe: Connection) -> None:
    """Score shards until none is left to take."""
    _be_a_child()
    keep_freed_memory()

    def indices() -> Iterator[int]:
        while (index := ask(pipe)) is not None:
            yield index

    async def go() -> None:
        out = place(order.out)
        begun = run.open_(out, run.read_manifest(out), order.wanted)
        begun.again = again
        served = {one.tag: _elsewhere(one, facts[one.tag], socket) for one in order.wanted}
        asked = questions.asked(order.wanted, served, {tag: one.runs for tag, one in facts.items()})
        kept = cache.Cache(order.cache, cache.PIXELS_KEY, [one.key for one in asked]) if order.cache else None
        batch = max(one.most for one in facts.values())
        scorer = Scorer(asked, kept, order.limits, order.stall_seconds, threads=1, batch=batch)
        try:
            async for shard, errors in run.shards(begun, scorer, indices()):
                tell(pipe, Put(shard.index, len(shard.missing), errors, scorer.known))
                scorer.known = 0
        finally:
            await scorer.close()

    try:
        asyncio.run(go())
    except (EndedError, UserError) as error:
        tell(pipe, Left(str(error)))
    else:
        tell(pipe, Left(None))


def ask(pipe: Connection) -> int | None:
    """Return the next shard that is a worker's, or None."""
    tell(pipe, Next())
    try:
        index: int | None = pipe.recv()
    except (EOFError, OSError):
        os._exit(1)  # as _be_a_child() does: the parent has ended
    return index


def tell(pipe: Connection, said: object) -> None:
    """Say something to the parent."""
    try:
        pipe.send(said)
    except OSError:
        os._exit(1)


def _elsewhere(one: Wanted, facts: Facts, socket: Path) -> ServedModel:
    """Return a model that runs in another process. What asks it ends where that process does."""
    caller = frames.Caller(one.task, socket, seconds=None)

    async def call(items: Sequence[Item[Any]]) -> Sequence[Result]:
        try:
            return await caller.predict(one.tag, items)
        except VisionError as error:
            raise DeviceLostError("The process that ran the models has ended") from error

    folder = store.folder(one.tag)
    return ServedModel(
        one.task, store.read_card(folder), one.task.load_shrink(folder), Queue(call, facts.most, facts.most)
    )


def _be_a_child() -> None:
    """Log as the parent does, and leave Ctrl-C to it; end when it ends, however it does."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None  # noqa: S101  this process was spawned

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
