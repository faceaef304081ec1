"""Scores whole collections without HTTP: `python -m bulk --help`."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
"""What a process that loads models has in its environment."""


class _ToldError(Exception):
    """What is told in one line, without a traceback."""

    def __init__(self, line: str) -> None:
        super().__init__(" ".join(line.split()))


class UserError(_ToldError):
    """What whoever ran a command can mend; nothing was written. Exit 2."""


class EndedError(_ToldError):
    """What ended a run that the same command goes on with. Exit 1."""
