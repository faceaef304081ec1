"""What the README shows is what happens: its two commands, its examples and their outputs."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from testkit.programs import need
from testkit.servers import ROOT, serve

README = (ROOT / "README.md").read_text()
EXAMPLES = {
    "sh": ["bash", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`make serve` with an empty model store: it saves the starters by itself."""
    with serve(tmp_path_factory.mktemp("bentoml"), ["make", "serve", "PORT={port}"]) as url:
        yield url


def examples() -> list[tuple[str, str, str]]:
    """Each fenced example with its language, and the output that the README shows after it."""
    fences = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
    return [
        (language, code, output)
        for (language, code), (kind, output) in pairwise(fences)
        if language in EXAMPLES and kind in ("json", "text")
    ]


@pytest.mark.parametrize("number", range(len(examples())))
@pytest.mark.served
def test_an_example_prints_what_the_readme_shows(served: str, number: int) -> None:
    language, code, output = examples()[number]
    program = EXAMPLES[language]
    need(program[0], {"node": "nodejs"}.get(program[0], program[0]))
    code = code.replace("http://127.0.0.1:3000", served)
    run = subprocess.run([*program, code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert_alike(parsed(run.stdout), parsed(output))


def test_the_readme_has_examples_in_three_languages() -> None:
    assert {language for language, _, _ in examples()} == set(EXAMPLES)


@pytest.mark.served
def test_make_serve_serves_the_starters(served: str) -> None:
    assert httpx.get(f"{served}/readyz").status_code == 200
    names = {model["name"] for model in httpx.get(f"{served}/models").json()["models"]}
    assert names == {"efficientnet-lite0", "flickr8k-captioner", "nanodet-g"}


def parsed(output: str) -> Any:
    if output.lstrip().startswith("{"):
        return json.loads(output)
    return [float(word) if re.fullmatch(r"[\d.]+", word) else word for word in re.findall(r"[^\s\[\],]+", output)]


def assert_alike(actual: Any, shown: Any) -> None:
    """Equal but for milliseconds and the last digits of numbers, which differ from machine to machine."""
    if isinstance(shown, dict):
        assert actual.keys() == shown.keys()
        for name in shown.keys() - {"ms"}:
            assert_alike(actual[name], shown[name])
    elif isinstance(shown, list):
        assert len(actual) == len(shown), actual
        for one, other in zip(actual, shown, strict=True):
            assert_alike(one, other)
    elif isinstance(shown, float):
        assert actual == pytest.approx(shown, abs=2e-3, rel=1e-3)
    else:
        assert actual == shown
