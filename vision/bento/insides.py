"""How BentoML's insides are changed: only what is there, so that an upgrade that moves it fails at once and loudly."""

from collections.abc import Container
from typing import Any


def replace(owner: Any, name: str, value: object) -> None:
    """Set an attribute that `owner`, a class, module or object, has already. Raises AttributeError if it has not."""
    getattr(owner, name)
    if isinstance(owner, type):
        type.__setattr__(owner, name, value)  # BentoML's classes may refuse
    else:
        setattr(owner, name, value)


def need(names: Container[str], name: str) -> None:
    """Raise AttributeError if a name that is relied on is not among `names`."""
    if name not in names:
        raise AttributeError(f"What vision/bento relies on has moved: there is no {name} any more.")
