"""Counts that several processes keep together, so that a limit holds over all of them.

Each process has a row of numbers in a file that all map into memory, and alone writes it; what counts is the sum of a
column. Locks are the file's (fcntl): when a process ends, however it does, the system takes its lock on its row, and
whoever notices empties the row. So nothing stays counted that is over.
"""

import fcntl
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import IO, Any

import numpy as np

MUTEX, ROWS = 0, 1
"""Bytes of the file that stand for its locks; from ROWS on one for each row."""


class Ledger:
    """The counts of this process and of those that opened the same file. For one thread, but for `alone`.

    columns: what each process counts. cells: what they have in common. callers: how many a process may count pixels of.
    """

    def __init__(
        self,
        file: IO[bytes] | None = None,
        rows: int = 1,
        columns: Sequence[str] = (),
        cells: Sequence[str] = (),
        callers: int = 64,
        on_death: Callable[[int], object] = id,
    ) -> None:
        """Take a row. `file` must be opened once in a process, and stay open; without one, nothing is shared.

        `on_death` is told the process id of who has ended since.
        """
        self._file, self._on_death = file, on_death
        self._column = {name: index for index, name in enumerate(("pid", *columns))}
        self._cell = {name: index for index, name in enumerate(cells)}
        row = np.dtype(
            [("counts", np.int64, len(self._column)), ("callers", np.int64, callers), ("pixels", np.int64, callers)]
        )
        size = 8 * max(1, len(cells)) + rows * row.itemsize
        if file is not None:
            os.truncate(file.fileno(), size)  # all that open it make it as large
            if sys.platform == "linux":  # others cannot claim blocks; a write into a hole of a full disk ends a process
                os.posix_fallocate(file.fileno(), 0, size)
        self._memory = mmap.mmap(-1 if file is None else file.fileno(), size)
        self._cells = np.frombuffer(self._memory, np.float64, len(cells))
        self._rows: Any = np.frombuffer(self._memory, row, rows, size - rows * row.itemsize)
        self._counts = self._rows["counts"]
        with self.exclusive():
            self._index = next((index for index in range(rows) if self._lock(ROWS + index)), rows)
            if self._index == rows:
                raise RuntimeError(f"there are {rows} of these processes already")
            self._own = self._counts[self._index]
            self._empty(self._index)
            self.sweep()
            self._own[0] = os.getpid()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep the others from counting. It may not be nested."""
        if len(self._rows) == 1:  # there are no others
            yield
            return
        self._wait(MUTEX)
        try:
            yield
        finally:
            self._unlock(MUTEX)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time do something that takes long; one thread of each may wait for it."""
        # A lock of another kind: the system would take two threads of a process, that wait for one, for a deadlock.
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    # --- columns -------------------------------------------------------------------------------------

    def own(self, column: str) -> int:
        return int(self._own[self._column[column]])

    def total(self, column: str) -> int:
        return sum(self._counts[:, self._column[column]].tolist())  # numpy takes longer for so few

    def least(self, column: str) -> int:
        """Return what the process counts that counts the fewest."""
        index = self._column[column]
        return min(counts[index] for counts in self._counts.tolist() if counts[0])

    def set(self, column: str, value: int) -> None:
        self._own[self._column[column]] = value

    def is_full(self, column: str, most: int) -> bool:
        """Whether `most` are counted. Hold `exclusive` if it is to stay true."""
        if self.total(column) >= most:
            self.sweep()
        return self.total(column) >= most

    def add(self, column: str, amount: int, most: int) -> bool:
        """Count `amount`, unless the sum would be more than `most`; return whether it was counted."""
        with self.exclusive():
            if self.is_full(column, most - amount + 1):
                return False
            self._own[self._column[column]] += amount
            return True

    def count(self, column: str, amount: int) -> None:
        """Count `amount`, whatever the sum is."""
        self._own[self._column[column]] += amount

    # --- cells ---------------------------------------------------------------------------------------

    def cell(self, name: str) -> float:
        return float(self._cells[self._cell[name]])

    def put(self, name: str, value: float) -> None:
        """Set a cell. Hold `exclusive` if it depends on what stood there."""
        self._cells[self._cell[name]] = value

    # --- pixels of callers ---------------------------------------------------------------------------

    def add_pixels(self, caller: str, pixels: int, most: int) -> int | None:
        """Count a caller's pixels. If some are counted, and it would be more than `most`, return how many are."""
        name = _number(caller)
        with self.exclusive():
            in_work = self._pixels(name)
            if in_work and in_work + pixels > most:
                self.sweep()
                in_work = self._pixels(name)
            if in_work and in_work + pixels > most:
                return in_work
            own = self._rows[self._index]
            places = np.flatnonzero(own["callers"] == name)
            place = places[0] if places.size else np.flatnonzero(own["callers"] == 0)[0]
            own["callers"][place] = name
            own["pixels"][place] += pixels
            return None

    def take_pixels(self, caller: str, pixels: int) -> None:
        own = self._rows[self._index]
        place = np.flatnonzero(own["callers"] == _number(caller))[0]
        own["pixels"][place] -= pixels
        if not own["pixels"][place]:
            own["callers"][place] = 0

    def _pixels(self, name: int) -> int:
        return int(self._rows["pixels"][self._rows["callers"] == name].sum())

    # --- rows ----------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Empty the rows of processes that have ended."""
        for index, pid in enumerate(self._counts[:, 0].tolist()):
            if pid and index != self._index and self._lock(ROWS + index):
                self._empty(index)
                self._unlock(ROWS + index)

    def _empty(self, index: int) -> None:
        pid = int(self._counts[index, 0])
        self._rows[index] = np.zeros((), self._rows.dtype)
        if pid:
            self._on_death(pid)

    def _lock(self, byte: int) -> bool:
        """Take a lock if nobody has it."""
        try:
            self._wait(byte, fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _wait(self, byte: int, how: int = 0) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX | how, 1, byte)

    def _unlock(self, byte: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


def _number(caller: str) -> int:
    """A caller as a number, never 0."""
    return int.from_bytes(blake2b(caller.encode(), digest_size=8).digest(), signed=True) or 1
