"""Many callers at once: everyone gets the answer that they would get alone."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest
from PIL import Image

from testkit.photographs import PHOTOS, assert_same, encoded
from testkit.servers import Served, frozen, metric, until

Request = tuple[str, str, dict[str, Any]]
"""Endpoint, photograph, options."""

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "/classify": [{}, {"top_k": 1}, {"top_k": 50, "min_score": 0.01}],
    "/caption": [{}, {"num_beams": 1}, {"num_beams": 2, "max_new_tokens": 6}, {"max_new_tokens": 12}],
    "/detect": [{}, {"min_score": 0.5}, {"labels": ["person", "cat"]}, {"max_detections": 1}],
    "/analyze": [{"top_k": 2, "num_beams": 1}, {"features": ["classification", "detection"]}],
}
REQUESTS: list[Request] = [
    (endpoint, photo, options)
    for endpoint, variants in OPTIONS.items()
    for options in variants
    for photo in ("bus", "zidane", "cat", "rocket")
]


async def send(client: httpx.AsyncClient, request: Request) -> httpx.Response:
    endpoint, photo, options = request
    return await client.post(endpoint, files={"images": PHOTOS[photo].read_bytes()}, data=options)


async def gather(concurrency: int, coroutines: list[Coroutine[Any, Any, httpx.Response]]) -> list[httpx.Response]:
    places = asyncio.Semaphore(concurrency)

    async def placed(coroutine: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        async with places:
            return await coroutine

    return await asyncio.gather(*map(placed, coroutines))


def concurrent(url: str, concurrency: int, requests: list[Request]) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=concurrency)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            return await gather(concurrency, [send(client, request) for request in requests])

    return asyncio.run(run())


def test_a_thousand_requests_from_32_clients_get_the_answers_they_get_alone(server: str) -> None:
    alone = dict(zip(map(str, REQUESTS), concurrent(server, 1, REQUESTS), strict=True))
    requests = random.Random(7).choices(REQUESTS, k=1000)
    answers = concurrent(server, 32, requests)
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 1000, {status: statuses.count(status) for status in set(statuses)}
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer.json(), alone[str(request)].json(), request[2].get("min_score", 0.25))


@pytest.mark.parametrize(("endpoint", "runner"), [("/classify", "classification"), ("/detect", "detection")])
def test_a_burst_makes_batches_larger_than_one(running: Served, endpoint: str, runner: str) -> None:
    def batches(part: str) -> float:
        """How many batches the runner computed, or how many pictures in them; BentoML's own metric counts calls."""
        return metric(running, f"vision_batch_images_{part}", task=runner)

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=running.url, timeout=120) as client:
            with frozen(running.workers()[runner]):
                asked = [asyncio.ensure_future(send(client, (endpoint, "cat", {}))) for _ in range(64)]
                await until(lambda: metric(running, "vision_queue_images", task=runner) == 64)
            return await asyncio.gather(*asked)

    count, pictures = batches("count"), batches("sum")
    assert {answer.status_code for answer in asyncio.run(run())} == {200}
    assert batches("sum") - pictures == 64
    assert batches("count") - count <= 32


def test_one_poisoned_picture_among_32_concurrent_ones_harms_nobody(server: str) -> None:
    good, poison = PHOTOS["bus"].read_bytes(), PHOTOS["bus"].read_bytes()[:50_000]

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server, timeout=120) as client:
            pictures = [good] * 15 + [poison] + [good] * 16
            return await gather(32, [client.post("/classify", files={"images": picture}) for picture in pictures])

    answers = asyncio.run(run())
    assert [answer.status_code for answer in answers] == [200] * 15 + [422] + [200] * 16
    scores = {round(a.json()["results"][0]["labels"][0]["score"], 3) for a in answers if a.status_code == 200}
    assert len(scores) == 1


def test_a_label_filter_that_fails_in_a_batch_fails_only_its_caller(server: str) -> None:
    requests: list[Request] = [("/detect", "bus", {"labels": ["unicorn"]} if i == 7 else {}) for i in range(16)]
    answers = concurrent(server, 16, requests)
    assert [answer.status_code for answer in answers] == [400 if i == 7 else 200 for i in range(16)]


def test_a_lone_caption_does_not_wait_for_a_whole_batch_of_long_ones(running: Served) -> None:
    async def run() -> int:
        async with httpx.AsyncClient(base_url=running.url, timeout=120) as client:
            # Small ones, or most of the time would be decoding.
            long, short = (encoded(Image.open(PHOTOS[name]).resize((256, 256)), "JPEG") for name in ("zidane", "cat"))
            pictures = [("images", long)] * 16
            answered_meanwhile = 0
            for _ in range(10):  # a batch may be over before anybody else had a core
                batch = asyncio.create_task(client.post("/caption", files=pictures, data={"num_beams": 8}))
                while not batch.done():
                    in_work = await asyncio.to_thread(metric, running, "vision_queue_images", task="captioning") > 0
                    alone = await client.post("/caption", files={"images": short}, data={"num_beams": 1})
                    assert alone.status_code == 200
                    answered_meanwhile += in_work and not batch.done()
                assert (await batch).status_code == 200
                if answered_meanwhile:
                    break
            return answered_meanwhile

    assert asyncio.run(run()) >= 1
