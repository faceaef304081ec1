"""What a run shows while it goes: on a terminal its rate, errors by kind and time left; else nothing."""

from collections import Counter
from collections.abc import Mapping
from time import perf_counter
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bulk.rows import Row


class Progress:
    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[errors]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, rate="", errors="")
        self.pictures, self.errors = 0, Counter[str]()
        self._start = self._end = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        self._start = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._end = perf_counter()
        self._bar.stop()

    @property
    def seconds(self) -> float:
        return (self._end or perf_counter()) - self._start if self._start else 0.0

    @property
    def rate(self) -> float:
        return self.pictures / max(self.seconds, 1e-9)

    def count(self, row: Row) -> None:
        self.add(1, {row["error"]["code"]: 1} if row["status"] == "error" else {})

    def add(self, pictures: int, errors: Mapping[str, int]) -> None:
        self.pictures += pictures
        self.errors.update(errors)
        if not self._bar.disable:
            rate = f"{self.rate:,.1f} pictures/s"
            self._bar.update(self._task, advance=pictures, rate=rate, errors=by_kind(self.errors))

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)


def by_kind(errors: Counter[str]) -> str:
    """Say how many there are of each kind: "2 errors: undecodable_image 2"."""
    number = errors.total()
    kinds = ", ".join(f"{code} {count}" for code, count in errors.most_common() if count)
    return f"{number:,} error{'s' * (number != 1)}{': ' * bool(kinds)}{kinds}"
