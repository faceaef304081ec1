"""Makes, fetches and measures models, and saves them into the model store: `python -m train_and_save --help`."""

from dataclasses import dataclass


class UserError(Exception):
    """What whoever ran a command can mend: shown as one line, without a traceback."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: what its card says of it."""

    name: str
    source: str
    licence: str
