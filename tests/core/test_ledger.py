"""What processes count together: limits that hold exactly, and nothing of who has ended."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from vision.core.ledger import Ledger

LIMIT = 100

COUNTS = f"""
import sys
from vision.core.ledger import Ledger
ledger = Ledger(open(sys.argv[1], "r+b"), 5, ["work"], ["left"], 8)
print("there", flush=True)
sys.stdin.readline()
print(sum(ledger.add("work", 1, {LIMIT}) for _ in range({LIMIT})))
print(sum(ledger.add_pixels("caller", 1, {LIMIT}) is None for _ in range({LIMIT})))
for _ in range(1000):
    with ledger.exclusive():
        ledger.put("left", ledger.cell("left") + 1)
print("done", flush=True)
sys.stdin.readline()
"""


class Other:
    """Another process, which counts as much as it may once it is told to."""

    def __init__(self, file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTS, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.line() == "there"

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Open = Callable[..., Ledger]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    file = tmp_path / "ledger"
    file.touch()
    return file


@pytest.fixture
def opened(shared: Path) -> Iterator[Open]:
    """Opens the ledger for this process."""
    with shared.open("r+b") as file:
        yield partial(Ledger, file, 5, ["work"], ["left"], 8)


def test_four_processes_count_to_the_limit_and_not_further(shared: Path, opened: Open) -> None:
    dead: list[int] = []
    mine, others = opened(dead.append), [Other(shared) for _ in range(4)]
    for other in others:
        other.go()
    counted, pixels = zip(*((int(other.line()), int(other.line())) for other in others), strict=True)
    assert [other.line() for other in others] == ["done"] * 4
    assert sum(counted) == sum(pixels) == mine.total("work") == LIMIT
    assert mine.cell("left") == 4000
    assert not mine.add("work", 1, LIMIT)
    assert mine.add_pixels("caller", 1, LIMIT) == LIMIT
    assert mine.add_pixels("another", 1, LIMIT) is None

    others[0].kill()
    assert not mine.add("work", counted[0] + 1, LIMIT)  # what it had is free, and no more
    assert mine.add("work", counted[0], LIMIT)
    assert mine.total("work") == LIMIT
    assert dead == [others[0].process.pid]
    successor = Other(shared)  # its row is free, too
    for other in (*others[1:], successor):
        other.kill()
    mine.sweep()
    assert mine.total("work") == mine.own("work") == counted[0]
    assert mine.add_pixels("caller", LIMIT, LIMIT) is None


def test_one_thing_at_a_time_is_done_alone_by_all(shared: Path, opened: Open) -> None:
    mine = opened()
    code = (
        "import sys; from vision.core.ledger import Ledger\n"
        "ledger = Ledger(open(sys.argv[1], 'r+b'), 5)\n"
        "print('there', flush=True)\n"
        "with ledger.alone(): print('alone', flush=True)\n"
    )
    with mine.alone():
        other = subprocess.Popen([sys.executable, "-c", code, str(shared)], stdout=subprocess.PIPE, text=True)
        assert other.stdout
        assert other.stdout.readline() == "there\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.communicate()[0] == "alone\n"


def test_more_processes_than_rows_are_refused(shared: Path, opened: Open) -> None:
    first = opened()
    code = "import sys; from vision.core.ledger import Ledger; Ledger(open(sys.argv[1], 'r+b'), 1)"
    run = subprocess.run([sys.executable, "-c", code, str(shared)], capture_output=True, text=True)
    assert "there are 1 of these processes already" in run.stderr
    assert first.total("work") == 0


def test_what_a_caller_has_is_forgotten_when_it_is_over() -> None:
    ledger = Ledger(callers=2)
    for number in range(10):
        assert ledger.add_pixels(str(number), 5, 5) is None
        assert ledger.add_pixels(str(number), 1, 5) == 5
        ledger.take_pixels(str(number), 5)
