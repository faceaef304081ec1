class UserError(Exception):
    """What whoever ran a command can mend: shown as one line, without a traceback."""
