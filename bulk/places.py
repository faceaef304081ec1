"""Where results go: a folder here, in which names appear whole or not at all, or an address that fsspec opens."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from uuid import uuid4

from bulk import UserError
from bulk.addresses import filesystem, is_remote, without_secrets

LOCK = "_lock"
NEW = ".new"
"""How what is being written ends. Each writer has a name of its own: of a cluster, two may write one shard."""


class Place(Protocol):
    name: str

    def names(self) -> list[str]:
        """Return what lies there."""
        ...

    def read(self, name: str) -> Any:
        """Open for reading bytes, with seek."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put a file there: whole, or not at all."""
        ...

    def locked(self) -> Any:
        """A context in which nobody else scores there. Raises UserError."""
        ...

    def bring(self, name: str) -> Any:
        """A context with a path to write a large file to, which then lies there whole."""
        ...


class Folder:
    """A local folder. What it holds is on the disk before its name is seen."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def read(self, name: str) -> Any:
        return (self.path / name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        with self.bring(name) as path:
            path.write_bytes(data)

    @contextmanager
    def bring(self, name: str) -> Iterator[Path]:
        new = self.path / f"_{name.lstrip('_')}.{uuid4().hex}{NEW}"
        try:
            yield new
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.replace(self.path / name)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The lock is the kernel's and ends with the process, however that ends."""
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        except OSError as error:
            raise UserError(f"{self.name} cannot be written: {error.strerror}.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.name}: another process scores there.") from error
            self._sweep()
            try:
                yield
            finally:
                self._sweep()
                if made and self.names() == [LOCK]:  # a run that did not begin leaves nothing
                    shutil.rmtree(self.path, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what was being written when somebody was killed."""
        for left in self.path.glob(f"_*{NEW}"):
            left.unlink(missing_ok=True)


class Remote:
    """A folder of a remote file system, an object store for example: each file is one object, put whole."""

    def __init__(self, address: str) -> None:
        self.name = without_secrets(address)
        self._system, self._root = filesystem(address.rstrip("/"))

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            return sorted(path.rstrip("/").rpartition("/")[2] for path in self._system.ls(self._root, detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> Any:
        self._system.invalidate_cache()  # it may have been written anew since it was listed
        return self._system.open(f"{self._root}/{name}", "rb")

    def write(self, name: str, data: bytes) -> None:
        self._system.pipe_file(f"{self._root}/{name}", data)

    @contextmanager
    def bring(self, name: str) -> Iterator[Path]:
        with TemporaryDirectory() as folder:
            yield Path(folder) / name
            self._system.put_file(str(Path(folder) / name), f"{self._root}/{name}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """There is no lock: a second scorer would write the same objects with the same contents."""
        yield


def made(path: Path) -> Folder:
    """Return a local folder, made where it is not there. Raises UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} cannot be written.")
    return Folder(path)


def place(out: str) -> Place:
    return Remote(out) if is_remote(out) else Folder(Path(out))
