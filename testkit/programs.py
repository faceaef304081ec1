"""Programs that some tests need and pip does not install."""

import os
import shutil

import pytest


def need(program: str, package: str) -> None:
    """Leave the test out where a program is missing, with the Debian package that has it; in CI that is a failure."""
    if shutil.which(program) is None:
        leave = pytest.fail if os.environ.get("PROGRAMS_REQUIRED") else pytest.skip
        leave(f"needs {program}: apt-get install {package}")
