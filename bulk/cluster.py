"""A run on a Ray cluster: actors score whole shards and put them; who began the run hands these out, and counts.

Ray Data has a checkpoint of its own (`ray.data.checkpoint`). It is not used: docs/beyond-one-machine.md says why.
"""

import asyncio
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bulk import OFFLINE, EndedError, UserError, cache, questions, run
from bulk.places import place
from bulk.progress import Progress
from bulk.questions import Wanted
from bulk.rows import MANIFEST
from bulk.run import Run
from bulk.score import Scorer
from vision.core.decoders import keep_freed_memory
from vision.core.images import Limits
from vision.settings import SETTINGS

try:
    import ray
    from ray.exceptions import RayActorError
except ModuleNotFoundError as error:
    raise UserError("Ray is not installed; `make install-ray` installs it.") from error

AHEAD = 2
"""Shards that an actor has in work: the models go on while one begins or ends."""

TRIES = 3
"""Actors that a shard may cost: what kills each actor that takes it would go round for ever."""

REACH_SECONDS, WAIT_SECONDS, CLOSE_SECONDS = 10, 600, 30
"""For a head to answer; for a machine to take an actor, a new one for example; for caches to be written in the end."""


@dataclass(frozen=True)
class Order:
    """What each actor is told."""

    out: str
    wanted: tuple[Wanted, ...]
    device: str
    cache: str | None
    """None: the usual one of the actor's machine."""
    keeps: bool
    limits: Limits
    stall_seconds: float


class Size(NamedTuple):
    """How many actors there are, and what each has."""

    actors: int
    cpus: int
    gpus: float


class Outcome(NamedTuple):
    """What became of a shard. ended: why the run cannot go on; then the shard is not done."""

    pictures: int
    errors: Counter[str]
    known: int
    ended: str | None = None


class Actor:
    """Scores shards with models in its process. A restarted one has forgotten everything, and loses nothing."""

    def __init__(self, order: Order, cpus: int, started: str) -> None:
        self._order, self._cpus, self._started = order, cpus, started
        self._run: Run | None = None

    async def ready(self) -> str | None:
        """Load what is needed, if it is not there yet; return what is in the way, in a line."""
        try:
            self._run = self._run or self._begin()
        except UserError as error:
            return f"{socket.gethostname()}: {error}"
        return None

    def _begin(self) -> Run:
        order = self._order
        out = place(order.out)
        begun = run.read_manifest(out) if MANIFEST in out.names() else {}
        if begun.get("started") != self._started:
            raise UserError(f"{out.name} is not what it is where the run began: it must be shared, or an address.")
        keep_freed_memory()
        asked = questions.load_all(order.wanted, order.device, SETTINGS.engine_dir)
        path = Path(order.cache) if order.cache else cache.usual()
        kept = cache.Cache(path, cache.PIXELS_KEY, [one.key for one in asked]) if order.keeps else None
        self._scorer = Scorer(asked, kept, order.limits, order.stall_seconds, self._cpus)
        return run.open_(out, begun, order.wanted)

    async def score(self, index: int, again: bool) -> Outcome:
        """Score a shard and put it. again: only what failed and may succeed now."""
        assert self._run is not None  # noqa: S101  ready() was called
        if again:
            self._run.again[index] = 0
        try:
            [(_, errors)] = [one async for one in run.shards(self._run, self._scorer, [index])]
        except (EndedError, UserError) as error:
            return Outcome(0, Counter(), 0, f"{socket.gethostname()}: {error}")
        known, self._scorer.known = self._scorer.known, 0
        return Outcome(self._run.listed.size(index), errors, known)

    async def close(self) -> None:
        if self._run is not None:
            await self._scorer.close()


def join(address: str | None, actors: int | None, cpus: int | None, gpus: float) -> Size:
    """Join a cluster, or start one on this machine; return which actors it has room for. Raises UserError."""
    head = address or os.environ.get("RAY_ADDRESS")
    if head and head not in ("auto", "local"):
        _reach(head)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(head, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": OFFLINE})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: Ray's cluster cannot be joined: {error}") from error
    return fitting([node["Resources"] for node in ray.nodes() if node["Alive"]], actors, cpus, gpus)


def _reach(head: str) -> None:
    """Ray itself would try for minutes, and end the process then."""
    host, _, port = head.rpartition(":")
    if not host or "://" in head or not port.isdigit():
        raise UserError(f"--address: {head} must be HOST:PORT of the cluster's head, 10.0.0.1:6379 for example.")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--address: no Ray cluster answers at {head}: {why}. `ray status` tells of one.") from error


def fitting(machines: Iterable[Mapping[str, float]], actors: int | None, cpus: int | None, gpus: float) -> Size:
    """Return which actors fit: with GPUs as many as these allow, else one a machine. Raises UserError if none does.

    cpus: of each; by default the machine's, divided among its actors: the smallest machine's.
    """
    room = [
        (found, share) for machine in machines if (found := _fit(machine, cpus, gpus)) and (share := _cpus(machine))
    ]
    if not room and actors is None:
        what = f"{gpus:g} GPUs and {cpus or 1} CPUs" if gpus else f"{cpus or 1} CPUs"
        raise UserError(f"No machine of the cluster has {what} for an actor; --actors waits for machines that start.")
    shares = [share // found for found, share in room]
    return Size(actors or sum(found for found, _ in room), cpus or max(1, min(shares, default=1)), gpus)


def _fit(machine: Mapping[str, float], cpus: int | None, gpus: float) -> int:
    by_gpus = int(machine.get("GPU", 0) / gpus) if gpus else None
    by_cpus = _cpus(machine) // cpus if cpus else None
    found = [one for one in (by_gpus, by_cpus) if one is not None]
    return min(found) if found else 1


def _cpus(machine: Mapping[str, float]) -> int:
    return int(machine.get("CPU", 0))


async def score(begun: Run, order: Order, size: Size, progress: Progress) -> int:
    """Score what a run has left; return how many pictures were known before. Raises UserError, EndedError."""
    begun.manifest["cluster"] = {"ray": ray.__version__, **size._asdict()}
    kind = ray.remote(num_cpus=size.cpus, num_gpus=size.gpus, max_restarts=-1, scheduling_strategy="SPREAD")(Actor)
    actors = [
        kind.remote(order, size.cpus, begun.manifest["started"]) for _ in range(min(size.actors, len(begun.todo())))
    ]
    stop = asyncio.Event()
    run.on_signals(stop, progress)
    hands = Hands(begun, progress, stop)
    try:
        await hands.out(actors)
    finally:
        if closing := [asyncio.ensure_future(actor.close.remote()) for actor in hands.ready]:
            await asyncio.wait(closing, timeout=CLOSE_SECONDS)
        ray.shutdown()
    return hands.known


class Hands:
    """Hands out shards until all are done, or somebody ends it. A shard whose actor died goes to whoever is free."""

    def __init__(self, begun: Run, progress: Progress, stop: asyncio.Event) -> None:
        self._run, self._progress, self._stop = begun, progress, stop
        self._todo = asyncio.Queue[int]()
        for index in begun.todo():
            self._todo.put_nowait(index)
        self._in_work = 0
        self._died = Counter[int]()
        self._ended: str | None = None
        self.ready = set[Any]()
        """Actors that have said so, and have not died since."""
        self.known = 0

    async def out(self, actors: Sequence[Any]) -> None:
        """Raises UserError, EndedError."""
        work = [asyncio.create_task(self._feed(actor)) for actor in actors for _ in range(AHEAD)]
        work += [asyncio.create_task(self._todo.join()), asyncio.create_task(self._drain())]
        try:
            finished = work[-2]
            while not finished.done():
                before = self._todo.qsize()
                done, _ = await asyncio.wait(work, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
                if not done and not self._in_work and self._todo.qsize() == before:
                    raise EndedError(f"No machine of the cluster took an actor within {WAIT_SECONDS} s.")
                work = [one for one in work if not one.done()]
        finally:
            for one in work:
                one.cancel()
        if self._ended:
            raise EndedError(self._ended)

    async def _drain(self) -> None:
        """Once somebody ends the run, only what is in work is waited for."""
        await self._stop.wait()
        while not self._todo.empty():
            self._todo.get_nowait()
            self._todo.task_done()

    async def _feed(self, actor: Any) -> None:
        while True:
            if said := await actor.ready.options(max_task_retries=-1).remote():
                raise UserError(said)
            self.ready.add(actor)
            index = await self._todo.get()
            self._in_work += 1
            try:
                self._took(index, await actor.score.remote(index, index in self._run.again))
            except RayActorError as error:
                self.ready.discard(actor)
                self._lost(index, str(error))
            finally:
                self._in_work -= 1
                self._todo.task_done()

    def _took(self, index: int, outcome: Outcome) -> None:
        if outcome.ended:
            self._end(outcome.ended)
            return
        self._run.took(index, outcome.errors)
        self._progress.add(outcome.pictures, outcome.errors)
        self.known += outcome.known

    def _lost(self, index: int, why: str) -> None:
        self._died[index] += 1
        if self._died[index] == TRIES:
            self._end(f"Shard {index} has cost {TRIES} actors, the last one so: {why}")
        elif not self._stop.is_set():
            self._todo.put_nowait(index)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._stop.set()
