"""The container images for real, on a Debian machine as root, without a container engine; `make test-image` runs this.

buildah builds, from a base that debootstrap makes in place of python:3.11-slim-bookworm; runc runs, as an engine would
with `--read-only --tmpfs /tmp --cap-drop ALL`. Ten gigabytes of disk are used and given back.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import psutil
import pytest
from packaging.requirements import Requirement

from testkit.photographs import PHOTOS
from testkit.servers import ROOT, served
from vision.api.page import FILES

BASE = "docker.io/library/python:3.11-slim-bookworm"
CA = "/etc/ssl/certs/ca-certificates.crt"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
STORED = Path("home/bentoml/bento")
TMP = "/tmp"  # noqa: S108 (the container's)


@pytest.fixture(scope="module", autouse=True)
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A storage of images of this test's own, which holds the base."""
    folder = tmp_path_factory.mktemp("storage")
    settings = folder / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        make_base(folder / "base")
        print(f"\nbase: {base_megabytes()} MB")
        yield
        run("buildah", "rm", "--all")
        run("buildah", "rmi", "--all", "--force")
    shutil.rmtree(folder)


def make_base(root: Path) -> None:
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root))
    for left_over in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / left_over)
    shutil.copyfile(CA, root / CA.lstrip("/"))  # the machine's own, for a network that has its own
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", "--quiet", container, str(root), "/")
    settings = (f"SSL_CERT_FILE={CA}", "PIP_BREAK_SYSTEM_PACKAGES=1")  # Debian's pip keeps off its packages
    run("buildah", "config", *(word for setting in settings for word in ("--env", setting)), container)
    run("buildah", "commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def base_megabytes() -> int:
    """Of the base, which stands in for python:3.11-slim-bookworm."""
    container = run("buildah", "from", BASE).strip()
    size = megabytes(Path(run("buildah", "mount", container).strip()))
    run("buildah", "rm", container)
    return size


def megabytes(folder: Path) -> int:
    return int(run("du", "-s", "--block-size=1000000", str(folder)).split()[0])


class Image:
    """A built image: its file system, mounted, and its configuration."""

    def __init__(self, name: str) -> None:
        self.container = run("buildah", "from", name).strip()
        self.root = Path(run("buildah", "mount", self.container).strip())
        self.config: dict[str, Any] = json.loads(run("buildah", "inspect", "--type", "image", name))["OCIv1"]["config"]

    @property
    def packages(self) -> Path:
        return self.root / "app/.venv/lib/python3.11/site-packages"

    @property
    def models(self) -> Path:
        return self.root / STORED / "models"

    def megabytes(self, folder: Path | None = None) -> int:
        return megabytes(folder or self.root)


@pytest.fixture(scope="module", params=["image-cpu", "image"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    word, name = request.param, {"image": "vision:latest", "image-cpu": "vision:cpu"}[request.param]
    home = tmp_path_factory.mktemp(word)
    start = monotonic()
    run("make", word, "BACKEND=buildah", BENTOML_HOME=str(home))
    built = Image(name)
    size = f"{built.megabytes() - base_megabytes()} MB above the base, of which models {built.megabytes(built.models)}"
    print(f"\nmake {word}: {monotonic() - start:.0f} s, {size}; largest packages in MB:\n")
    largest = run("sh", "-c", f"du -s --block-size=1000000 {built.packages}/* | sort -rn | head -12")
    print(re.sub(r"/\S*/", "", largest))
    yield built
    run("buildah", "rm", built.container)
    run("buildah", "rmi", "--force", name)


def test_it_installs_the_lock_and_nothing_else(image: Image) -> None:
    lock = (image.root / STORED / "env/python/requirements.txt").read_text()
    wanted = set()
    for line in re.findall(r"^[a-z0-9][^\\\n]*", lock, flags=re.M):
        requirement = Requirement(line)
        if not requirement.marker or requirement.marker.evaluate({"python_full_version": "3.11.2"}):
            wanted.add(canonical(requirement.name))
    installed = [canonical(found.name) for found in distributions(path=[str(image.packages)])]
    assert sorted(installed) == sorted(wanted)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_has_no_compiler_no_cache_and_no_test_of_ours(image: Image) -> None:
    programs = {
        file.name
        for folder in ("usr/bin", "usr/local/bin", "app/.venv/bin")
        for file in (image.root / folder).iterdir()
    }
    assert not programs & {"gcc", "cc", "g++", "c++", "make", "git", "pytest", "ruff", "mypy"}
    for cache in ("root/.cache", "home/bentoml/.cache", "app/.cache"):
        assert not (image.root / cache).exists()
    assert not list((image.root / "tmp").iterdir())
    source = image.root / STORED / "src"
    assert {entry.name for entry in source.iterdir()} == {"bentofile.yaml", "examples", "service.py", "vision"}


def test_without_cuda_it_is_small_above_its_base(image: Image) -> None:
    if any(image.packages.glob("nvidia_c*")):
        pytest.skip("this one has CUDA")
    assert image.megabytes() - base_megabytes() <= 700
    assert not (image.packages / "torch").exists()


def test_read_only_and_without_rights_it_answers_as_the_working_tree_does(
    image: Image, server: str, tmp_path: Path
) -> None:
    write_container(image, tmp_path)
    command = f"sed -i s/PORT/{{port}}/ config.json && exec runc run {tmp_path.name}"
    with served(tmp_path, ["env", "-C", str(tmp_path), "sh", "-c", command]) as running:
        assert ip_address(listens_on(running.url)).is_unspecified
        assert httpx.get(f"{running.url}/readyz").status_code == 200
        assert FILES.keys() > {"/", "/docs", *(f"/examples/{file.name}" for file in (ROOT / "examples").glob("*.jpg"))}
        for path in FILES:
            assert httpx.get(running.url + path).content == httpx.get(server + path).content
        assert versions(running.url) == versions(server)
        for photo in ("bus", "cat", "coffee"):
            assert_alike(answer(running.url, photo), answer(server, photo))
        assert_alike(insights(running.url), insights(server))
        assert running.stop() == 0, "".join(running.lines)


def write_container(image: Image, folder: Path) -> None:
    """Write the config.json that runc runs: the image's entrypoint and user, its root read-only, no capabilities."""
    run("env", "-C", str(folder), "runc", "spec")
    spec = json.loads((folder / "config.json").read_text())
    user = next(
        line.split(":")
        for line in (image.root / "etc/passwd").read_text().splitlines()
        if line.startswith(image.config["User"] + ":")
    )
    settings = ["BENTOML_HOME=/tmp/bentoml", "HOME=/home/bentoml", "VISION_ALLOW_ANONYMOUS=true"]
    assert int(user[2]) > 0
    assert spec["root"]["readonly"]
    assert spec["process"]["noNewPrivileges"]
    spec["root"]["path"] = str(image.root)
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": int(user[2]), "gid": int(user[3])},
        "args": [*image.config["Entrypoint"], "--port", "PORT"],
        "env": [*image.config["Env"], *settings],
        "cwd": image.config["WorkingDir"],
        "capabilities": {},
    }
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] in ("proc", "tmpfs")]
    spec["mounts"].append({"destination": TMP, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]})
    hosts = folder / "hosts"  # an engine writes it
    hosts.write_text("127.0.0.1 localhost\n")
    spec["mounts"].append(
        {"destination": "/etc/hosts", "type": "bind", "source": str(hosts), "options": ["bind", "ro"]}
    )
    spec["linux"]["resources"]["cpu"] = {"shares": 100_000}  # on a busy machine its group would get one process's share
    spec["linux"]["namespaces"] = [kind for kind in spec["linux"]["namespaces"] if kind["type"] != "network"]
    (folder / "config.json").write_text(json.dumps(spec))


def listens_on(url: str) -> str:
    port = httpx.URL(url).port
    [address] = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    }
    return str(address)


def versions(url: str) -> dict[str, str]:
    return {model["name"]: model["version"] for model in httpx.get(f"{url}/models").json()["models"]}


def answer(url: str, photo: str) -> Any:
    reply = httpx.post(f"{url}/analyze", files={"images": PHOTOS[photo].read_bytes()}, timeout=120)
    assert reply.status_code == 200, reply.text
    [result] = reply.json()["results"]
    del result["ms"]
    return result


def insights(url: str) -> Any:
    """Of two pictures that show the same: the rules that ship have a tip for them."""
    images = [("images", PHOTOS["cat"].read_bytes())] * 2
    reply = httpx.post(f"{url}/insights", files=images, timeout=120)
    assert reply.status_code == 200, reply.text
    found = reply.json()["insights"]
    assert found["tips"]
    return found


def assert_alike(actual: Any, expected: Any) -> None:
    """Equal but for the last digits, which differ from one build of torch to another."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_alike(actual[name], expected[name])
    elif isinstance(expected, list):
        assert len(actual) == len(expected), actual
        for one, other in zip(actual, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=1e-3, rel=1e-3)
    else:
        assert actual == expected
