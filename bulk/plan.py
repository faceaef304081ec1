"""What would it cost: a sample is scored, nothing is written, and the whole is estimated from it."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from time import perf_counter

from statsmodels.stats.proportion import proportion_confint

from bulk import UserError
from bulk.addresses import Entry
from bulk.rows import Row
from bulk.score import AT_ONCE, Scorer

BLOCKS = 10
"""Of equal size, into which the sample's time is cut: their rates tell how sure the mean is."""

STUDENT = 2.262
"""Student's t of 95 % for BLOCKS - 1 degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """pictures: of the whole. rate, low, high: pictures a second, and its 95 % interval. mean_bytes: of a picture."""

    pictures: int
    sampled: int
    rate: float
    low: float
    high: float
    mean_bytes: float
    failed: int
    unread: int
    copies: int

    def hours(self, rate: float, machines: int) -> float:
        return self.pictures / rate / machines / 3600

    def told(self, machines: Sequence[int], machine_hour: float | None) -> str:
        low, high = proportion_confint(self.failed, self.sampled, method="wilson")
        gigabytes = self.pictures * self.mean_bytes / 1e9
        sure = f"{self.low:,.1f} to {self.high:,.1f}" if self.low else "too few to say how sure that is"
        lines = [
            f"{self.pictures:,} pictures, {gigabytes:,.2f} GB; {self.sampled:,} were scored",
            f"{self.failed / self.sampled:.1%} fail ({low:.1%} to {high:.1%}); {self.unread:,} of these cannot be read",
            f"{self.copies:,} of the sample are copies of others in it",
            f"{self.rate:,.1f} pictures/s on this machine ({sure})",
        ]
        for number in machines:
            hours = self.hours(self.rate, number)
            line = f"{number:,} machine{'s' * (number > 1)}: {_hours(hours)}"
            if self.low:
                line += f" ({_hours(self.hours(self.high, number))} to {_hours(self.hours(self.low, number))})"
            if machine_hour is not None:
                line += f", {hours * number * machine_hour:,.2f} at {machine_hour:g} a machine-hour"
            lines.append(line)
        return "\n".join(lines)


def sample(entries: Iterable[Entry], size: int, seed: int = 0) -> tuple[list[Entry], int]:
    """Draw entries evenly from a listing that is read once (Vitter's algorithm R); return how many there are, too."""
    draw, drawn, count = random.Random(seed), list[Entry](), 0
    for count, entry in enumerate(entries, 1):
        if len(drawn) < size:
            drawn.append(entry)
        elif (at := draw.randrange(count)) < size:
            drawn[at] = entry
    if not count:
        raise UserError("There are no pictures.")
    draw.shuffle(drawn)
    return drawn, count


async def plan(entries: Iterable[Entry], size: int, scorer: Scorer) -> Estimate:
    """Score a sample and estimate the whole. Raises UserError, EndedError."""
    drawn, count = sample(entries, size)
    rows: list[Row] = []
    times = [perf_counter()]
    async for row in scorer.rows(drawn):
        rows.append(row)
        times.append(perf_counter())
    digests = [row["sha256"] for row in rows if row.get("sha256")]
    rate, low, high = rates(times)
    return Estimate(
        pictures=count,
        sampled=len(rows),
        rate=rate,
        low=low,
        high=high,
        mean_bytes=mean(row["bytes"] for row in rows if row.get("sha256")) if digests else 0,
        failed=sum(row["status"] == "error" for row in rows),
        unread=len(rows) - len(digests),
        copies=len(digests) - len(set(digests)),
    )


def rates(times: Sequence[float]) -> tuple[float, float, float]:
    """Return pictures a second and its 95 % interval, of the moments at which rows came.

    The first ones come late and the last ones early, while the threads fill and run dry: where there are enough, they
    do not count.
    """
    steady = times[AT_ONCE:-AT_ONCE] if len(times) > 4 * AT_ONCE else times
    size = (len(steady) - 1) // BLOCKS
    overall = (len(steady) - 1) / max(steady[-1] - steady[0], 1e-9)
    if not size:
        return overall, 0.0, float("inf")
    seconds = [(steady[(block + 1) * size] - steady[block * size]) / size for block in range(BLOCKS)]
    error = STUDENT * stdev(seconds) / sqrt(BLOCKS)
    slow, fast = 1 / overall + error, 1 / overall - error
    return overall, 1 / slow, 1 / fast if fast > 0 else float("inf")


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"
