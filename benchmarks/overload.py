"""What a flood does: goodput, latency of what was accepted and of refusals at multiples of the capacity.

    python -m benchmarks.overload http://127.0.0.1:3000 bus.jpg [--endpoint /classify] [--seconds 15]

The service must run with the limit to be measured (VISION_MAX_IN_FLIGHT). Capacity is what closed-loop clients, as many
as that limit, get answered; then requests come open-loop at fixed intervals, whatever happens to those before
(latency from when each should have been sent). Rates count what was answered before the load ended, and not what was
still in work then. All on one machine: the client takes its share of the cores.
"""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import aiohttp
import numpy as np
import uvloop

from benchmarks.client import HEADERS, multipart


@dataclass
class Answer:
    status: int
    seconds: float
    came: float
    """By perf_counter."""


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str, picture: bytes) -> None:
        self._session, self._url, self._body = session, url, multipart([picture], {})

    async def ask(self, intended: float) -> Answer:
        async with self._session.post(self._url, data=self._body, headers=HEADERS) as answer:
            await answer.read()
            return Answer(answer.status, perf_counter() - intended, perf_counter())

    async def closed_loop(self, clients: int, seconds: float) -> list[Answer]:
        end = perf_counter() + seconds
        answers = []

        async def loop() -> None:
            while (start := perf_counter()) < end:
                answers.append(await self.ask(start))

        await asyncio.gather(*(loop() for _ in range(clients)))
        return answers

    async def open_loop(self, rate: float, seconds: float) -> list[Answer]:
        start = perf_counter()
        asked = []
        for number in range(round(rate * seconds)):
            intended = start + number / rate
            await asyncio.sleep(max(0, intended - perf_counter()))
            asked.append(asyncio.ensure_future(self.ask(intended)))
        return await asyncio.gather(*asked)


def goodput(answers: Sequence[Answer], end: float, seconds: float) -> float:
    return sum(answer.status == 200 and answer.came <= end for answer in answers) / seconds


def p99(answers: Sequence[Answer]) -> float:
    return float(np.quantile([answer.seconds for answer in answers], 0.99)) if answers else float("nan")


async def measure(url: str, picture: bytes, limit: int, seconds: float) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, url, picture)
        await client.closed_loop(1, 3)
        alone = p99(await client.closed_loop(1, seconds))
        end = perf_counter() + seconds
        full = await client.closed_loop(limit, seconds)
        peak = goodput(full, end, seconds)
        print(f"alone p99 {alone * 1000:.0f} ms; {limit} clients: {peak:.1f}/s, p99 {p99(full) * 1000:.0f} ms")
        print("load  goodput/peak  accepted p99 ms (x alone, x full)  refusal p50, p99 ms  client CPU  answers")
        for load in (0.5, 1, 2, 4, 8):
            cpu, wall = process_time(), perf_counter()
            answers = await client.open_loop(load * peak, seconds)
            share = (process_time() - cpu) / (perf_counter() - wall)
            of_peak = goodput(answers, wall + seconds, seconds) / peak
            good = [answer for answer in answers if answer.status == 200]
            refused = [answer.seconds * 1000 for answer in answers if answer.status == 503]
            accepted = p99(good)
            refusals = "-" if not refused else "{:.0f}, {:.0f}".format(*np.quantile(refused, (0.5, 0.99)))
            print(
                f"{load:4g}x {of_peak:12.2f}  {accepted * 1000:10.0f} ({accepted / alone:.1f}, "
                f"{accepted / p99(full):.1f})  {refusals:>18}  {share:9.0%}  {dict(Counter(a.status for a in answers))}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--endpoint", default="/classify")
    parser.add_argument("--limit", type=int, default=64, help="the service's VISION_MAX_IN_FLIGHT")
    parser.add_argument("--seconds", type=float, default=15)
    asked = parser.parse_args()
    uvloop.run(measure(asked.url + asked.endpoint, asked.picture.read_bytes(), asked.limit, asked.seconds))


if __name__ == "__main__":
    main()
