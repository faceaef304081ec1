"""Who decodes what when: cheap pictures beside dear ones, callers by turns, and what a caller may have in work."""

import asyncio
import hashlib
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, sleep

import httpx
import numpy as np
import pytest
from PIL import Image

from testkit.photographs import PHOTOS, encoded
from testkit.servers import another, served
from vision.core.decode_process import DecodeProcess
from vision.core.decoders import HUGE_PIXELS, Decoders, Lane
from vision.core.errors import Code, VisionError
from vision.core.images import Limits, decode_cheap, decode_reduced

FLAT = Limits(max_pixels_per_byte=1e9)
BUS = PHOTOS["bus"].read_bytes()
SECONDS = 60


def flat(side: int) -> bytes:
    """A lossless WebP in one colour."""
    return encoded(Image.new("RGB", (side, side), "red"), "WEBP", lossless=True)


@contextmanager
def decoders(pixels: int = 10**9, seconds: float = SECONDS) -> Iterator[Decoders]:
    some = Decoders(1, FLAT, pixels, seconds)
    try:
        yield some
    finally:
        some.close()


def size(_: Image.Image, given: tuple[int, int]) -> tuple[int, int]:
    return given


class Gate:
    """Work for a lane: does nothing until it is let, and tells in which order it was begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Semaphore(0)
        self.begins = threading.Semaphore(0)

    def work(self, name: str) -> Callable[[], str]:
        def call() -> str:
            self.begun.append(name)
            self.begins.release()
            self.go.acquire()
            return name

        return call


def test_who_has_used_less_goes_next() -> None:
    async def run() -> None:
        lane, gate = Lane(1), Gate()
        many = [asyncio.ensure_future(lane.run("a", 1, gate.work(f"a{number}"))) for number in range(4)]
        await asyncio.to_thread(gate.begins.acquire)
        few = [asyncio.ensure_future(lane.run("b", 1, gate.work(f"b{number}"))) for number in range(2)]
        await asyncio.sleep(0)
        for _ in range(6):
            gate.go.release()
        assert await asyncio.gather(*many, *few) == ["a0", "a1", "a2", "a3", "b0", "b1"]
        assert gate.begun[:2] == ["a0", "b0"]
        assert gate.begun[-1].startswith("a")
        lane.close()

    asyncio.run(run())


@pytest.mark.served
def test_what_work_took_counts_whatever_was_foreseen() -> None:
    async def run() -> None:
        lane, gate = Lane(1), Gate()
        first = asyncio.ensure_future(lane.run("c", 0, gate.work("c")))
        await asyncio.to_thread(gate.begins.acquire)

        def slow() -> None:
            gate.begun.append("a")
            sleep(1)

        dear = [asyncio.ensure_future(lane.run("a", 0.001, slow)) for _ in range(2)]
        cheap = [asyncio.ensure_future(lane.run("b", 0.001, gate.work("b"))) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(6):
            gate.go.release()
        await asyncio.gather(first, *dear, *cheap)
        assert "".join(gate.begun) == "cabbbbba"
        lane.close()

    asyncio.run(run())


def test_waiting_work_whose_caller_left_is_never_begun_and_running_work_keeps_its_place() -> None:
    async def run() -> None:
        lane, gate = Lane(1), Gate()
        running, waiting, last = [
            asyncio.ensure_future(lane.run(name, 1, gate.work(name))) for name in ("running", "waiting", "last")
        ]
        await asyncio.to_thread(gate.begins.acquire)
        for one in (running, waiting):
            one.cancel()
            with suppress(asyncio.CancelledError):
                await one
        assert gate.begun == ["running"]
        gate.go.release()
        gate.go.release()
        assert await last == "last"
        assert gate.begun == ["running", "last"]
        assert not lane._accounts
        lane.close()

    asyncio.run(run())


def test_an_error_goes_to_who_asked() -> None:
    async def run() -> None:
        with decoders() as some, pytest.raises(VisionError) as caught:
            await some.run("a", BUS[:9000], size)
        assert caught.value.code == Code.UNDECODABLE_IMAGE

    asyncio.run(run())


@pytest.mark.served
def test_a_small_photo_passes_any_number_of_large_pictures() -> None:
    async def run() -> None:
        huge, dear = flat(5100), flat(2200)
        assert HUGE_PIXELS < 5100**2
        with decoders() as some:
            large = [asyncio.ensure_future(some.run("a", data, size)) for data in [huge, dear] * 3]
            await asyncio.sleep(0)
            for _ in range(5):
                assert await some.run("b", BUS, size) == (810, 1080)
            assert not all(one.done() for one in large)
            assert await asyncio.gather(*large) == [(5100, 5100), (2200, 2200)] * 3

    asyncio.run(run())


@pytest.mark.served
def test_a_caller_has_a_limited_number_of_pixels_in_work() -> None:
    async def run() -> None:
        data = flat(2200)
        with decoders(pixels=2 * 2200**2) as some:
            mine = [asyncio.ensure_future(some.run("a", data, size)) for _ in range(4)]
            other = asyncio.ensure_future(some.run("b", data, size))
            results = await asyncio.gather(*mine, return_exceptions=True)
            assert results.count((2200, 2200)) == 2
            codes = [result.code for result in results if isinstance(result, VisionError)]
            assert codes == [Code.QUOTA_EXCEEDED] * 2
            assert await other == (2200, 2200)
            assert await some.run("a", flat(5000), size) == (5000, 5000)  # alone, one may be larger

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "is_cheap"),
    [
        (BUS, True),
        (encoded(Image.new("RGB", (4000, 3000)), "JPEG"), True),
        (encoded(Image.new("RGB", (4000, 3000)), "JPEG", progressive=True), False),
        (encoded(Image.new("RGB", (4000, 3000)), "PNG"), False),
        (encoded(Image.new("RGBA", (1000, 1000)), "PNG"), True),
    ],
)
def test_what_decoding_takes_is_known_from_the_header(data: bytes, is_cheap: bool) -> None:
    assert isinstance(decode_cheap(data, FLAT, 0.12), tuple) == is_cheap


@pytest.mark.served
def test_few_bytes_cannot_claim_many_pixels() -> None:
    for data in (flat(8600), encoded(Image.new("RGB", (8600, 8600)), "PNG")):
        with pytest.raises(VisionError) as caught:
            decode_reduced(data)
        assert caught.value.code == Code.TOO_MANY_PIXELS
    assert decode_reduced(flat(3000))[1] == (3000, 3000)


@pytest.mark.served
def test_a_process_decodes_as_a_thread_does() -> None:
    process = DecodeProcess(FLAT, SECONDS)
    oriented = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(PHOTOS["bus"]) as photo:
        photo.save(oriented, "JPEG", exif=exif)
    for data in (BUS, oriented.getvalue(), PHOTOS["coffee"].read_bytes(), flat(3000)):
        picture, given = process.decode_reduced(data)
        expected, expected_size = decode_reduced(data, FLAT)
        assert given == expected_size
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    with pytest.raises(VisionError) as caught:
        process.decode_reduced(BUS[:9000])
    assert caught.value.code == Code.UNDECODABLE_IMAGE
    process.close()


@pytest.mark.served
def test_a_process_that_dies_or_hangs_costs_one_picture() -> None:
    process = DecodeProcess(FLAT, SECONDS)
    process.decode_reduced(BUS)
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    assert process.decode_reduced(BUS)[1] == (810, 1080)  # known to be dead, it is replaced at once
    os.kill(process._process.pid, signal.SIGSTOP)
    os.waitpid(process._process.pid, os.WUNTRACED)
    process._seconds = 1
    with pytest.raises(VisionError):
        process.decode_reduced(BUS)
    process._seconds = SECONDS
    assert process.decode_reduced(BUS)[1] == (810, 1080)
    process.close()


def test_one_keys_small_photos_do_not_wait_for_anothers_bombs(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The bounds are those of issue 23, for two cores."""
    entries = ",".join(f"{name}:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("small", "large"))
    settings = {"VISION_API_KEYS": entries, "VISION_MAX_PIXELS_PER_BYTE": "1e9"}
    bombs = [("images", flat(8600))] * 16

    async def run(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:

            async def ask(key: str, files: list[tuple[str, bytes]]) -> float:
                start = perf_counter()
                answer = await client.post("/classify", headers={"authorization": f"Bearer {key}"}, files=files)
                assert key == "large" or answer.status_code == 200
                return perf_counter() - start

            async def p99() -> float:
                await asyncio.sleep(1)
                return max([await ask("small", [("images", BUS)]) for _ in range(50)])

            share = await ask("large", bombs[:1])
            alone = await p99()
            for requests in (1, 3, 6):
                load = [asyncio.ensure_future(ask("large", bombs)) for _ in range(requests)]
                beside = await p99()
                print(f"small photo: {alone:.3f} s alone, {beside:.3f} s beside {requests}; one bomb {share:.1f} s")
                assert any(not one.done() for one in load)
                assert beside < min(1, 4 * alone + share)
                for one in load:
                    one.cancel()
                await asyncio.gather(*load, return_exceptions=True)

    with served(another(home, tmp_path_factory), **settings) as running:
        asyncio.run(run(running.url))
