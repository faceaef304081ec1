"""The small part of proof.py that every run of the tests has."""

from pathlib import Path

from tests.bulk.proof import prove


def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(home: Path, tmp_path: Path) -> None:
    assert prove(home, tmp_path, pictures=500, kills=4, within=1.5) > 0
