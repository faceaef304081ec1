"""Broken pictures, two thousand of those that `make fuzz` sends: each gets its own error, and nothing else suffers."""

from random import Random

from testkit.fuzz.attack import attack
from testkit.fuzz.pictures import cases, corpus

SEED = 20_240_601
PICTURES = 2_000


def test_broken_pictures_harm_nothing(server: str) -> None:
    every = list(cases(corpus(), mutations=4_000, seed=SEED))
    done = attack(server, Random(SEED).sample(every, min(PICTURES, len(every))), SEED)
    assert done.pictures >= PICTURES
    assert done.outcomes["ok"] > PICTURES / 20, "too few were pictures at all"
    assert done.outcomes["undecodable_image"] > PICTURES / 20, "too few were broken"
