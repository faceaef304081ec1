"""The OpenAPI document holds for requests that nobody thought of."""

from testkit.fuzz.schema import schemathesis
from testkit.fuzz.watch import pids


def test_answers_to_generated_requests_are_documented(server: str) -> None:
    before = pids(server)
    requests, told = schemathesis(server, examples=5, seed=1)
    assert requests > 400, told
    assert pids(server) == before
