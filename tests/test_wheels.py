"""The light lock installs from wheels alone, on every Python and platform that the README names."""

import pytest

from testkit import light

pytestmark = pytest.mark.served

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "Linux on x86": "x86_64-unknown-linux-gnu",
    "Linux on ARM": "aarch64-manylinux_2_35",  # OpenVINO's wheel asks for that glibc
    "macOS on ARM": "aarch64-apple-darwin",
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_light_lock_needs_no_compiler(python: str, platform: str) -> None:
    where = ("--python-version", python, "--python-platform", PLATFORMS[platform])
    # Without dependencies: the lock is complete, for every platform that its markers tell apart.
    found = light.uv(
        "pip", "compile", *where, "--only-binary", ":all:", "--no-deps", "--quiet", "requirements-light.lock"
    )
    assert "openvino==" in found
