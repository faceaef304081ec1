"""python -m benchmarks.soak [--minutes 30] [--share 0.7]: what grows, leaks or dies under mixed load.

Starts a server of its own, measures how many requests a second it can answer (32 clients, each waiting for its answer),
and sends `share` of that: at random times, whether or not answers have come, so that a slow service gets no rest.
Photographs go to every endpoint; one request in twenty is a broken picture or a broken request, one a page.

A line a minute. At the end the trend after the warm-up (the first sixth of the time). Exits with 1 when

- an answer is undocumented, does not fit its input, or says that the service failed (shed load, 503 overloaded and
  504, is counted and shown), or a connection breaks;
- a process has died, or logged a traceback;
- memory grew by more than MAX_GROWTH of what it was, file descriptors by more than MAX_MORE_FILES, or there are more
  than MAX_SERIES series of metrics.
"""

import argparse
import asyncio
import base64
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle, islice
from random import Random
from typing import Any

import httpx
import numpy as np

from testkit.fuzz.pictures import cases, corpus
from testkit.fuzz.watch import OURS, document, fresh_server, pids
from testkit.photographs import PHOTOS
from testkit.servers import Served
from vision.core.errors import Code

CLIENTS = 32
MAX_GROWTH = 0.05
MAX_MORE_FILES = 20
MAX_SERIES = 2_000
SHED = {Code.OVERLOADED, Code.DEADLINE_EXCEEDED}

ENDPOINTS = {"/classify": 45, "/detect": 20, "/caption": 15, "/analyze": 10}
PAGES = ("/livez", "/readyz", "/metrics", "/models", "/version", "/docs.json")
BODIES = (b"", b"{", b"[]", b'{"images": []}', b'{"images": ["/etc/passwd"]}', b'{"images": ["eA=="], "topk": 1}')


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    body: dict[str, Any]
    good: bool


@dataclass
class Tally:
    """What was sent and came back in some time."""

    statuses: Counter[int] = field(default_factory=Counter)
    shed: int = 0
    problems: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        p50, p99 = np.percentile(self.ms or [0], (50, 99))
        return f"{self.statuses.total():7} {p50:7.0f} {p99:7.0f}  {statuses}, shed {self.shed}"


@dataclass(frozen=True)
class Reading:
    """What the server holds at a moment."""

    minute: float
    megabytes: dict[str, float]
    files: int
    series: int

    @property
    def total(self) -> float:
        return sum(self.megabytes.values())

    def __str__(self) -> str:
        each = " ".join(f"{name}:{value:.0f}" for name, value in self.megabytes.items())
        return f"{self.total:6.0f} MB ({each})  {self.files} files  {self.series} series"


def requests(random: Random) -> Any:
    """Yield requests without end."""
    photos = [path.read_bytes() for path in PHOTOS.values()]
    broken = list(islice(cases(corpus(), 0), 0, None, 7))
    random.shuffle(broken)
    worse = cycle(broken)
    kinds = [*ENDPOINTS, "page", "broken picture", "broken request"]
    weights = [*ENDPOINTS.values(), 5, 4, 1]
    while True:
        kind = random.choices(kinds, weights)[0]
        endpoint = random.choice(tuple(ENDPOINTS))
        if kind == "page":
            yield Request("GET", random.choice(PAGES), {}, True)
        elif kind == "broken picture":
            yield Request("POST", endpoint, _body(random, next(worse)), False)
        elif kind == "broken request":
            body = {"content": random.choice(BODIES), "headers": {"content-type": "application/json"}}
            yield Request("POST", endpoint, body, False)
        else:
            yield Request("POST", kind, _body(random, random.choice(photos)), True)


def _body(random: Random, picture: bytes) -> dict[str, Any]:
    if random.random() < 0.8:
        return {"files": {"images": picture}}
    return {"json": {"images": [base64.b64encode(picture).decode()]}}


async def send(http: httpx.AsyncClient, request: Request, due: float, tally: Tally) -> None:
    """Send a request; note its answer, and the time since it was due."""
    try:
        response = await http.request(request.method, request.path, **request.body)
    except httpx.HTTPError as error:
        tally.problems.append(f"{request.path}: {error!r}")
        return
    tally.ms.append((time.perf_counter() - due) * 1000)
    tally.statuses[response.status_code] += 1
    code = response.json()["error"]["code"] if response.status_code >= 400 else None
    if code in SHED:
        tally.shed += 1
    elif code in OURS or (request.good and code) or str(response.status_code) not in documented(http, request):
        tally.problems.append(f"{request.path}: {response.status_code} {response.text[:200]}")


def documented(http: httpx.AsyncClient, request: Request) -> set[str]:
    """The statuses that the OpenAPI document names; it does not name itself."""
    path = document(str(http.base_url).rstrip("/"))["paths"].get(request.path, {})
    return set(path[request.method.lower()]["responses"] if path else {"200"})


async def capacity(http: httpx.AsyncClient, stream: Any, seconds: float) -> float:
    """Requests a second with CLIENTS that each wait for their answer."""
    tally, start = Tally(), time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < start + seconds:
            await send(http, next(stream), time.perf_counter(), tally)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return tally.statuses.total() / (time.perf_counter() - start)


async def soak(server: Served, minutes: float, share: float, seed: int) -> tuple[Tally, list[Reading]]:
    """Send requests for so many minutes; return all that came back, and a reading for each minute."""
    random = Random(seed)
    stream, whole, readings = requests(random), Tally(), []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http, asyncio.TaskGroup() as sent:
        await capacity(http, stream, 10)
        most = await capacity(http, stream, 30)
        rate = share * most
        print(f"{most:.1f} requests/s at most; sending {rate:.1f} requests/s for {minutes:g} minutes", flush=True)
        print(f"{'minute':>6} {'answers':>7} {'p50 ms':>7} {'p99 ms':>7}  statuses")
        start = due = time.perf_counter()
        minute, tally = 1, Tally()
        while due < start + minutes * 60:
            due += random.expovariate(rate)
            await asyncio.sleep(due - time.perf_counter())
            sent.create_task(send(http, next(stream), due, tally))
            if due > start + minute * 60:
                readings.append(await read(server, http, minute))
                print(f"{minute:6} {tally}\n{'':24}{readings[-1]}", *tally.problems[:5], sep="\n  ", flush=True)
                whole = _together(whole, tally)
                minute, tally = minute + 1, Tally()
    return _together(whole, tally), readings


async def read(server: Served, http: httpx.AsyncClient, minute: float) -> Reading:
    """Read memory, file descriptors and the number of metric series."""
    workers = server.workers()
    series = [line for line in (await http.get("/metrics")).text.splitlines() if not line.startswith("#")]
    megabytes = {name: worker.memory_info().rss / 1e6 for name, worker in workers.items()}
    return Reading(minute, megabytes, sum(worker.num_fds() for worker in workers.values()), len(series))


def _together(one: Tally, other: Tally) -> Tally:
    return Tally(one.statuses + other.statuses, one.shed + other.shed, one.problems + other.problems, one.ms + other.ms)


def growth(readings: list[Reading], values: list[float]) -> float:
    """What a straight line through the values gains from the first reading to the last."""
    minutes = [reading.minute for reading in readings]
    return float(np.polyfit(minutes, values, 1)[0] * (minutes[-1] - minutes[0]))


def judge(whole: Tally, readings: list[Reading]) -> list[str]:
    """Print the end's figures; return what is wrong."""
    steady = readings[len(readings) // 6 :]
    more = growth(steady, [reading.total for reading in steady])
    files = growth(steady, [reading.files for reading in steady])
    print(f"\nall: {whole}\n{len(whole.problems)} problems; after the warm-up, over {len(steady)} minutes:")
    for name in steady[0].megabytes:
        each = growth(steady, [reading.megabytes[name] for reading in steady])
        print(f"  {name:16}{steady[0].megabytes[name]:8.0f} MB, {each:+.1f} MB by the trend")
    print(f"  {'all':16}{steady[0].total:8.0f} MB, {more:+.1f} MB; {steady[0].files} files, {files:+.1f}; ", end="")
    print(f"{readings[-1].series} series, {readings[-1].series - steady[0].series:+}")
    wrong = whole.problems[:20]
    if more > MAX_GROWTH * steady[0].total:
        wrong.append(f"memory grew by {more:.0f} MB")
    if files > MAX_MORE_FILES:
        wrong.append(f"{files:.0f} more files are open")
    if readings[-1].series > MAX_SERIES:
        wrong.append(f"{readings[-1].series} series of metrics")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=int, default=30, help="at least 2")
    parser.add_argument("--share", type=float, default=0.7, help="of what the service can answer")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with fresh_server() as server:
        before = pids(server.url)
        wrong = judge(*asyncio.run(soak(server, chosen.minutes, chosen.share, chosen.seed)))
        if pids(server.url) != before:
            wrong.append("a process has died")
        wrong += [line for line in server.lines if '"exception"' in line][:5]
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
