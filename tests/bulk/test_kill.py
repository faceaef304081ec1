"""The small part of proof.py that every run of the tests has."""

from pathlib import Path

import pytest

from tests.bulk.proof import prove

pytestmark = pytest.mark.served


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(home: Path, tmp_path: Path) -> None:
    assert prove(home, tmp_path, pictures=150, kills=3, within=1, shard_rows=10) > 0
