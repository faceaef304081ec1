"""What bulk scoring on a cluster says without one, and its manifests."""

import copy
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import latest_version, validate

from bulk import UserError, cluster
from bulk.__main__ import _parser
from bulk.cluster import Size, fitting
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
