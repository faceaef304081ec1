"""Scores whole collections without HTTP: `python -m bulk --help`."""


class UserError(Exception):
    """What whoever ran a command can mend; nothing was written. One line, exit 2."""


class EndedError(Exception):
    """What ended a run that the same command goes on with. One line, exit 1."""
