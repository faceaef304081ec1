"""Requests that schemathesis makes from the service's own OpenAPI document."""

import re
import subprocess
import sys
from pathlib import Path

LEFT_OUT = (
    "positive_data_acceptance",  # its random bytes are no pictures, and get 415 or 422
    "negative_data_rejection",  # in a form "null" stands for no value, and an empty list for no field
)


def schemathesis(url: str, examples: int, seed: int) -> tuple[int, str]:
    """Run it with about `examples` requests an operation; return how many requests it made, and what it printed.

    Raises AssertionError when an answer is undocumented, a 5xx, or does not fit the document.
    """
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{url}/docs.json"),
            *("--phases", "coverage,fuzzing", "--exclude-checks", ",".join(LEFT_OUT)),
            *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"),
            *("--request-timeout", "10", "--no-color", "--continue-on-failure", "--no-shrink"),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    generated = re.search(r"([\d,]+) generated", run.stdout)
    assert generated, run.stdout
    return int(generated[1].replace(",", "")), run.stdout
