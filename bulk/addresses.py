"""Where a picture's bytes are: a path, a place in a tar file, or an address that fsspec opens."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import fsspec

from bulk import UserError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Entry(NamedTuple):
    """One picture of a collection, not opened yet."""

    id: str
    group: str | None
    address: str
    """A local path, or what fsspec opens; with credentials and query, if it needs any."""
    offset: int | None = None
    """Where its bytes begin in a tar file; with `size` of them."""
    size: int | None = None
    member: str | None = None
    carried: dict[str, Any] | None = None

    @property
    def uri(self) -> str:
        """How rows name it: without credentials and query; a tar's member as fsspec does, tar://member::address."""
        uri = without_secrets(self.address)
        return f"tar://{self.member}::{uri}" if self.member else uri


def is_remote(address: str) -> bool:
    return bool(_SCHEME.match(address))


def join(folder: str, name: str) -> str:
    """Name something in a folder, if it is not told whole. A list has millions: pathlib would take most of its time."""
    if is_remote(name) or name.startswith("/"):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.normpath(f"{folder}/{name}")


def without_secrets(address: str) -> str:
    if not is_remote(address):
        return address
    links = []
    for link in address.split("::"):  # fsspec's chains
        parts = urlsplit(link, allow_fragments=link.startswith("http"))
        host = parts.netloc.rpartition("@")[2]
        links.append(urlunsplit((parts.scheme, host, parts.path, "", "")) if is_remote(link) else link)
    return "::".join(links)


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. Raises UserError where its package is missing."""
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{without_secrets(address)} cannot be opened: {error}") from error
    return system, path


def open_(address: str) -> Any:
    """Open for reading bytes, with seek. Raises UserError."""
    try:
        if not is_remote(address):
            return Path(address).open("rb")
        system, path = filesystem(address)
        return system.open(path, "rb")
    except OSError as error:
        raise UserError(f"{without_secrets(address)} cannot be read: {error.strerror or error}") from error


def read(entry: Entry) -> bytes:
    """Read a picture's bytes. Raises OSError, or whatever a remote file system raises."""
    if is_remote(entry.address):
        system, path = filesystem(entry.address)
        end = None if entry.offset is None or entry.size is None else entry.offset + entry.size
        data: bytes = system.cat_file(path, start=entry.offset, end=end)
        return data
    with Path(entry.address).open("rb") as file:
        if entry.offset is None or entry.size is None:
            return file.read()
        data = os.pread(file.fileno(), entry.size, entry.offset)
    if len(data) < entry.size:
        raise OSError("the tar file is shorter than it was")
    return data
