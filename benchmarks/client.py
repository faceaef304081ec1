"""python -m benchmarks.client URL BODY (--clients N | --rate R) [--seconds 5]: load on a server; prints JSON.

A process of its own, so that its work is told apart from the server's. The body, made once by `multipart`, is read
from a file and sent as it is. `--clients` loop, each waiting for its answer. `--rate` sends at random times (a Poisson
process), whether or not answers have come; latency counts from when a request was due, so a slow client shows.
"""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from time import perf_counter, process_time

import aiohttp
import uvloop
from pydantic import BaseModel

BOUNDARY = "picture"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Load(BaseModel):
    """What came back. Only successes have a latency."""

    ms: list[float]
    failures: dict[str, int]
    seconds: float
    """From the first request to the last answer."""
    client_cpu: float
    """Share of a core that the client took."""


def multipart(pictures: Sequence[bytes], fields: Mapping[str, object]) -> bytes:
    """A form with the pictures as files in `images`, and the fields."""
    parts = [
        b'Content-Disposition: form-data; name="images"; filename="x.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + picture
        for picture in pictures
    ]
    parts += [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()
    ]
    return b"".join(b"--%b\r\n%b\r\n" % (BOUNDARY.encode(), part) for part in parts) + b"--%b--\r\n" % BOUNDARY.encode()


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str, body: bytes) -> None:
        self._session, self._url, self._body = session, url, body
        self.ms: list[float] = []
        self.failures: Counter[str] = Counter()

    async def ask(self, due: float) -> None:
        try:
            async with self._session.post(self._url, data=self._body, headers=HEADERS) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures[type(error).__name__] += 1
            return
        if answer.status != 200 or b'"error"' in text:
            self.failures[str(answer.status)] += 1
        else:
            self.ms.append(round((perf_counter() - due) * 1000, 2))

    async def closed_loop(self, clients: int, seconds: float) -> None:
        end = perf_counter() + seconds

        async def loop() -> None:
            while (start := perf_counter()) < end:
                await self.ask(start)

        await asyncio.gather(*(loop() for _ in range(clients)))

    async def open_loop(self, rate: float, seconds: float, random: Random) -> None:
        start = perf_counter()
        due = start + random.expovariate(rate)
        async with asyncio.TaskGroup() as asked:
            while due < start + seconds:
                await asyncio.sleep(due - perf_counter())
                asked.create_task(self.ask(due))
                due += random.expovariate(rate)


async def run(url: str, body: bytes, clients: int | None, rate: float | None, seconds: float, seed: int) -> Load:
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        client = Client(session, url, body)
        start, cpu = perf_counter(), process_time()
        if rate is not None:
            await client.open_loop(rate, seconds, Random(seed))
        else:
            await client.closed_loop(clients or 1, seconds)
        wall = perf_counter() - start
        share = (process_time() - cpu) / wall
        return Load(ms=client.ms, failures=client.failures, seconds=wall, client_cpu=share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    body = asked.body.read_bytes()
    load = uvloop.run(run(asked.url, body, asked.clients, asked.rate, asked.seconds, asked.seed))
    print(json.dumps(load.model_dump()))


if __name__ == "__main__":
    main()
