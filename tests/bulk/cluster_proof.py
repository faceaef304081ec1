"""make test-ray: a real Ray cluster of several nodes on this machine, of which some die.

No picture is lost, none is there twice, and the rows are those of a run in one process that nobody disturbed.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from testkit.servers import OFFLINE, ROOT
from tests.bulk.proof import command, dataset, noise

PICTURES, SHARD = int(os.environ.get("PICTURES", "300")), 10
STORE_BYTES = 80_000_000


class Ray:
    """A cluster: a head on which no actor runs, and nodes with a core each."""

    def __init__(self, nodes: int, environment: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster

        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            self.nodes = [self.cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(nodes)]
        self.address: str = self.cluster.address

    def kill_node(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def actors(self) -> list[psutil.Process]:
        """The processes of actors that score."""
        title = "ray::Actor."
        return [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [""])[0].startswith(title)]


@contextmanager
def cluster(nodes: int, environment: dict[str, str]) -> Iterator[Ray]:
    one = Ray(nodes, environment)
    try:
        yield one
    finally:
        one.cluster.shutdown()


class Case:
    """Pictures, what a run in one process makes of them, and the command that scores them on a cluster."""

    def __init__(self, place: Path, home: Path, pictures: int) -> None:
        self.place, self.pictures = place, pictures
        self.environment = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
        self.photos = noise(place / "photos", pictures)
        whole = place / "whole"
        here = command(self.photos, whole, place / "whole.sqlite", SHARD)
        subprocess.run(here, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        self.expected = dataset(whole)

    def on(self, ray: Ray, name: str) -> tuple[list[str], Path]:
        out = self.place / name
        asked = command(self.photos, out, self.place / f"{name}.sqlite", SHARD)
        return [*asked, "--engine", "ray", "--address", ray.address], out

    def run(self, ray: Ray, name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.on(ray, name)[0], cwd=ROOT, env=self.environment, capture_output=True, text=True)

    def start(self, ray: Ray, name: str, shards: int) -> "subprocess.Popen[str]":
        """Start a run; return once some shards are there."""
        asked, out = self.on(ray, name)
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(asked, cwd=ROOT, env=self.environment, stdout=nothing, stderr=pipe, text=True)
        while len(list(out.glob("part-*"))) < shards:
            assert process.poll() is None, process.communicate()
        return process

    def check(self, name: str) -> None:
        out = self.place / name
        rows: list[dict[str, Any]] = dataset(out)
        assert [row["id"] for row in rows] == [f"{index:06}.jpg" for index in range(self.pictures)]
        assert rows == self.expected
        assert not list(out.glob("_*.new"))


def ended(process: "subprocess.Popen[str]") -> None:
    _, said = process.communicate()
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def case(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("ray"), home, PICTURES)


@pytest.fixture(scope="module")
def ray(case: Case) -> Iterator[Ray]:
    with cluster(2, case.environment) as one:
        yield one


def test_a_worker_that_is_killed_costs_nothing(case: Case, ray: Ray) -> None:
    process = case.start(ray, "worker", 4)
    victims = ray.actors()
    assert len(victims) == 2
    victims[0].kill()
    ended(process)
    case.check("worker")


def test_a_driver_that_is_killed_goes_on_and_its_actors_end(case: Case, ray: Ray) -> None:
    for shards in (3, 12):
        process = case.start(ray, "driver", shards)
        before = ray.actors()
        process.kill()
        process.communicate()
        assert before
        assert not psutil.wait_procs(before, timeout=60)[1]
        assert 0 < len(list((case.place / "driver").glob("part-*"))) < PICTURES // SHARD
    done = case.run(ray, "driver")
    assert done.returncode == 0, done.stderr
    case.check("driver")


def test_ctrl_c_ends_after_the_shards_in_work(case: Case, ray: Ray) -> None:
    process = case.start(ray, "stopped", 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "The same command goes on" in said
    done = case.run(ray, "stopped")
    assert done.returncode == 0, done.stderr
    case.check("stopped")


def test_a_node_that_is_killed_costs_nothing(case: Case, ray: Ray) -> None:
    """The last one, since the node stays away."""
    process = case.start(ray, "node", 4)
    ray.kill_node()
    ended(process)
    case.check("node")
