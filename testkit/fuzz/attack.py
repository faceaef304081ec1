"""Thousands of broken pictures, posted to a server: every answer must be a documented one that blames the input."""

import base64
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from testkit.fuzz.watch import HANG_SECONDS, check_answer, check_known_picture, pids

AT_ONCE = 2
CHECK_EVERY = 1000

OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "/classify": {"top_k": (1, 5, 1000), "min_score": (0, 0.5, 1)},
    "/caption": {"max_new_tokens": (1, 4), "num_beams": (1, 2)},
    "/detect": {"min_score": (0.1, 0.9), "max_detections": (1, 300), "labels": (["person"], ["dog", "cat"])},
    "/analyze": {
        "features": (["detection"], ["classification", "detection"], ["captioning"]),
        "max_new_tokens": (1, 4),
        "top_k": (1, 1000),
    },
}
MOST = {"/classify": 16, "/caption": 2, "/detect": 6, "/analyze": 4}
"""Pictures in a request: fewer where a picture costs more."""


@dataclass
class Attack:
    """What was sent and what came back."""

    pictures: int
    requests: int
    statuses: Counter[int]
    outcomes: Counter[str]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.pictures:,} pictures in {self.requests:,} requests",
                "statuses: " + ", ".join(f"{status} {count:,}" for status, count in sorted(self.statuses.items())),
                "pictures: " + ", ".join(f"{outcome} {count:,}" for outcome, count in self.outcomes.most_common()),
            ]
        )


def attack(url: str, cases: Iterable[bytes], seed: int = 0, tell: Callable[[Attack], None] = lambda _: None) -> Attack:
    """Post the cases, every endpoint, body form and option by turns. Raises AssertionError, httpx.TimeoutException."""
    before, done = pids(url), Attack(0, 0, Counter(), Counter())
    requests = _requests(cases, Random(seed))
    with httpx.Client(base_url=url, timeout=HANG_SECONDS) as client, ThreadPoolExecutor(AT_ONCE) as pool:

        def post(request: tuple[str, dict[str, Any], int]) -> tuple[int, list[str]]:
            endpoint, body, pictures = request
            response = client.post(endpoint, **body)
            return response.status_code, check_answer(url, response, pictures)

        while batch := list(_until_thousand(requests)):
            for status, outcomes in pool.map(post, batch):
                done.pictures += len(outcomes)
                done.requests += 1
                done.statuses[status] += 1
                done.outcomes.update(outcomes)
            check_known_picture(client)
            assert pids(url) == before, "a process has died"
            tell(done)
    return done


def _requests(cases: Iterable[bytes], random: Random) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Endpoint, arguments of httpx's post and number of pictures, until there are no more cases."""
    cases = iter(cases)
    endpoints = random.choices(tuple(OPTIONS), (7, 1, 2, 1), k=10_000)
    for endpoint in itertools.cycle(endpoints):
        pictures = list(itertools.islice(cases, random.randint(1, MOST[endpoint])))
        if not pictures:
            return
        options = {name: random.choice(values) for name, values in OPTIONS[endpoint].items()}
        if random.random() < 0.5:
            yield endpoint, {"files": [("images", data) for data in pictures], "data": options}, len(pictures)
        else:
            images = [base64.b64encode(data).decode() for data in pictures]
            yield endpoint, {"json": {"images": images, **options}}, len(pictures)


def _until_thousand(requests: Iterator[tuple[str, dict[str, Any], int]]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The next requests, up to a thousand pictures."""
    pictures = 0
    while pictures < CHECK_EVERY and (request := next(requests, None)):
        pictures += request[2]
        yield request
