"""What bulk scoring on a cluster says without one, and its manifests."""

import asyncio
import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate
from ray.exceptions import RayActorError

from bulk import EndedError, UserError, cluster
from bulk.__main__ import _parser
from bulk.cluster import Hands, Outcome, Size, fitting
from bulk.progress import Progress
from bulk.run import Run
from testkit.servers import ROOT

RAYJOB = yaml.safe_load((ROOT / "deploy" / "ray" / "rayjob.yaml").read_text())
SCHEMA = yaml.safe_load((ROOT / "tests" / "schemas" / "rayjob-v1.yaml").read_text())
GPUS = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "asked", "size"),
    [
        ([{"CPU": 8.0}, {"CPU": 16.0}, {"memory": 1.0}], (None, None, 0), Size(2, 8, 0)),
        ([{"CPU": 8.0}, {"CPU": 16.0}], (None, 4, 0), Size(6, 4, 0)),
        ([GPUS, {"CPU": 64.0}], (None, None, 1), Size(4, 4, 1)),
        ([GPUS], (None, None, 0.5), Size(8, 2, 0.5)),
        ([GPUS], (3, None, 1), Size(3, 4, 1)),
        ([], (8, None, 1), Size(8, 1, 1)),
    ],
)
def test_as_many_actors_as_fit(machines: list[dict[str, float]], asked: tuple[Any, Any, float], size: Size) -> None:
    assert fitting(machines, *asked) == size


def test_no_machine_that_fits_is_told() -> None:
    with pytest.raises(UserError, match="No machine of the cluster has 1 GPUs and 1 CPUs for an actor"):
        fitting([{"CPU": 8.0}], None, None, 1)


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"), ("ray://head:1", "must be HOST:PORT")],
)
def test_a_cluster_that_is_not_there_is_told(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        cluster.join(address, None, None, 0)


def test_without_ray_what_installs_it_is_told() -> None:
    blocked = "import sys; sys.modules['ray'] = None"
    code = f"{blocked}\nimport bulk\ntry:\n import bulk.cluster\nexcept bulk.UserError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == "Ray is not installed; `make install-ray` installs it.\n"


class Call:
    """A method of an actor, called here."""

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.remote = call

    def options(self, **_: object) -> "Call":
        return self


class Hand:
    """An actor that does as it is told with each shard."""

    def __init__(self, does: Callable[[int], Outcome], says: str | None = None) -> None:
        self._does, self._says, self.took = does, says, list[int]()
        self.ready, self.score = Call(self._ready), Call(self._score)

    async def _ready(self) -> str | None:
        return self._says

    async def _score(self, index: int, again: bool) -> Outcome:
        await asyncio.sleep(0)
        self.took.append(index)
        return self._does(index)


def scored(index: int) -> Outcome:
    return Outcome(10, Counter(timeout=1), 2)


def dies(index: int) -> Outcome:
    raise RayActorError


def hand_out(*actors: Hand, stopped: bool = False) -> tuple[Run, Hands]:
    listed: Any = SimpleNamespace(shards=7)
    begun = Run(listed, {}, listed, listed, {0}, Counter(), False)

    async def go() -> Hands:
        stop = asyncio.Event()
        if stopped:
            stop.set()
        hands = Hands(begun, Progress(60), stop)
        await hands.out(actors)
        return hands

    return begun, asyncio.run(go())


def test_each_shard_that_is_left_is_handed_out_once() -> None:
    first, second = Hand(scored), Hand(scored)
    begun, hands = hand_out(first, second)
    assert sorted(first.took + second.took) == [1, 2, 3, 4, 5, 6]
    assert (begun.todo(), begun.errors, hands.known) == ([], Counter(timeout=6), 12)


def test_the_shards_of_an_actor_that_died_go_to_others() -> None:
    deaths = iter([dies, dies])
    begun, _ = hand_out(Hand(scored), Hand(lambda index: next(deaths, scored)(index)))
    assert (begun.todo(), begun.errors) == ([], Counter(timeout=6))


@pytest.mark.parametrize(
    ("actor", "kind", "says"),
    [
        (Hand(dies), EndedError, "Shard 1 has cost 3 actors"),
        (Hand(lambda index: Outcome(0, Counter(), 0, "full")), EndedError, "full"),
        (Hand(scored, "no such model"), UserError, "no such model"),
    ],
)
def test_what_ends_a_run_is_told(actor: Hand, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        hand_out(actor)


def test_who_ends_a_run_waits_for_what_is_in_work() -> None:
    begun, _ = hand_out(Hand(scored), stopped=True)
    assert 0 < len(begun.todo()) <= 6


def test_the_rayjob_fits_its_crd() -> None:
    jsonschema.validate(RAYJOB, SCHEMA)
    misspelt = copy.deepcopy(RAYJOB)
    misspelt["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(misspelt, SCHEMA)
    spec = RAYJOB["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        validate(pod, latest_version(), strict=True)


def test_the_rayjob_s_command_is_one_and_its_ray_is_the_lock_s() -> None:
    words = RAYJOB["spec"]["entrypoint"].split()
    asked = _parser().parse_args(words[words.index("bulk") + 1 :])
    assert (asked.engine, asked.gpus) == ("ray", 1)
    assert f"ray=={RAYJOB['spec']['rayClusterSpec']['rayVersion']} " in (ROOT / "requirements-ray.lock").read_text()
