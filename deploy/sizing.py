"""How much one replica does on this machine: rows for the sizing table of deploy/README.md.

    python deploy/sizing.py http://127.0.0.1:3000 bus.jpg [--key KEY] [--seconds 15]

Closed loop: each client sends its next request when it has the answer to the last. One picture a request; only answers
with status 200 count, and any other ends the run. The client runs on the same machine and takes its share.
"""

import argparse
import asyncio
import statistics
from itertools import product
from pathlib import Path
from time import perf_counter

import httpx

ENDPOINTS = ("/classify", "/detect", "/caption", "/analyze")
CLIENTS = (1, 16)


async def measure(
    client: httpx.AsyncClient, endpoint: str, picture: bytes, clients: int, seconds: float
) -> list[float]:
    """Seconds of each answer."""
    end = perf_counter() + seconds
    taken: list[float] = []

    async def ask() -> None:
        while (start := perf_counter()) < end:
            answer = await client.post(endpoint, files={"images": picture})
            answer.raise_for_status()
            taken.append(perf_counter() - start)

    await asyncio.gather(*(ask() for _ in range(clients)))
    return taken


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--key", help="an API key, where the service wants one")
    parser.add_argument("--seconds", type=float, default=15, help="for each row (default 15)")
    arguments = parser.parse_args()
    picture = arguments.picture.read_bytes()
    headers = {"Authorization": f"Bearer {arguments.key}"} if arguments.key else {}
    limits = httpx.Limits(max_connections=max(CLIENTS))
    print("| endpoint | clients | pictures/s | median ms | 95 % ms |\n|---|---|---|---|---|")
    async with httpx.AsyncClient(base_url=arguments.url, headers=headers, limits=limits, timeout=120) as client:
        for endpoint, clients in product(ENDPOINTS, CLIENTS):
            start = perf_counter()
            taken = await measure(client, endpoint, picture, clients, arguments.seconds)
            rate = len(taken) / (perf_counter() - start)
            median, worst = statistics.median(taken) * 1000, statistics.quantiles(taken, n=20)[-1] * 1000
            print(f"| `{endpoint}` | {clients} | {rate:.1f} | {median:.0f} | {worst:.0f} |")


if __name__ == "__main__":
    asyncio.run(main())
