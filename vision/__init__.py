"""What the endpoints need, a room an idea; README.md draws the map."""

from contextlib import suppress
from importlib import metadata

__version__ = "1.0.0"


def installed(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are here; the light install lacks some."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
