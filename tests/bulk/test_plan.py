"""What a plan says of a whole that it saw a part of."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from bulk import UserError
from bulk.addresses import Entry
from bulk.plan import Estimate, plan, rates, sample
from bulk.score import Scorer
from testkit.photographs import encoded
from vision.core.images import LIMITS


def entries(count: int) -> list[Entry]:
    return [Entry(str(index), None, f"/photos/{index}.jpg") for index in range(count)]


def test_a_sample_is_drawn_evenly_from_what_is_read_once() -> None:
    drawn = Counter(int(one.id) // 100 for seed in range(50) for one in sample(iter(entries(1000)), 100, seed)[0])
    assert drawn.total() == 5000
    assert min(drawn.values()) > 400  # 500 each, give or take five deviations
    assert sample(iter(entries(7)), 100)[1] == 7
    with pytest.raises(UserError, match="no pictures"):
        sample([], 5)


def test_the_rate_is_that_of_steady_work_and_its_interval_holds_it() -> None:
    steady = [index / 40 for index in range(1000)]
    assert rates(steady) == pytest.approx((40, 40, 40))
    uneven = [index / 40 + (index % 3) * 0.01 for index in range(1000)]
    rate, low, high = rates(uneven)
    assert low < 40 < high
    assert rate == pytest.approx(40, rel=0.01)
    assert rates([0.0, 0.5])[0] == 2


def test_hours_and_money_are_told_of_one_machine_and_of_many() -> None:
    told = Estimate(3_600_000, 500, 100, 90, 110, 1e5, 5, 1, 2).told([1, 10], machine_hour=2.5)
    assert "3,600,000 pictures, 360.00 GB" in told
    assert "1.0% fail (0.4% to 2.3%)" in told
    assert "1 machine: 10.0 h (9.1 h to 11.1 h), 25.00 at 2.5 a machine-hour" in told
    assert "10 machines: 1.0 h (54.5 min to 1.1 h), 25.00 at" in told


def test_of_a_few_pictures_no_interval_is_told() -> None:
    told = Estimate(4, 4, 8, *rates([0.0, 0.1, 0.2, 0.3, 0.5])[1:], 1e5, 0, 0, 0).told([1], machine_hour=None)
    assert "8.0 pictures/s on this machine (too few to say" in told
    assert told.endswith("1 machine: 0.0 min")


def test_what_a_sample_holds_is_counted(tmp_path: Path) -> None:
    for index in range(20):
        data = encoded(Image.new("RGB", (8, 8), (index // 2, 0, 0)))
        (tmp_path / f"{index}.png").write_bytes(b"none" if index == 5 else data)
    found = [Entry(str(index), None, str(tmp_path / f"{index}.png")) for index in range(21)]

    async def go() -> Estimate:
        scorer = Scorer([], None, LIMITS, stall_seconds=60)
        try:
            return await plan(found, 100, scorer)
        finally:
            await scorer.close()

    counted = asyncio.run(go())
    assert (counted.pictures, counted.sampled, counted.failed, counted.unread, counted.copies) == (21, 21, 2, 1, 9)
