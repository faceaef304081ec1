"""docs/clients.md runs, in each language that is here; the OpenAPI document is valid, and a client of it compiles."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from testkit.programs import need
from testkit.servers import ROOT

TEXT = (ROOT / "docs" / "clients.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PACKAGES = ROOT / "tests" / "clients"

RUN = {
    "python": ("main.py", [sys.executable], "python3"),
    "js": ("main.mjs", ["node"], "nodejs"),
    "java": ("Detect.java", ["java"], "default-jdk-headless"),
    "go": ("main.go", ["go", "run"], "golang-go"),
}
"""Language: the file that holds it, what runs it, the Debian package of that."""

TSC = ("--strict", "--target", "es2022", "--module", "nodenext", "--skipLibCheck")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def block(language: str, number: int = 0) -> str:
    return [code for name, code in BLOCKS if name == language][number]


def here(code: str, server: str) -> str:
    assert "http://127.0.0.1:3000" in code
    return code.replace("http://127.0.0.1:3000", server)


@pytest.mark.parametrize("language", RUN)
def test_the_code_finds_the_person(server: str, folder: Path, language: str) -> None:
    file, command, package = RUN[language]
    need(command[0], package)
    (folder / file).write_text(here(block(language), server))
    told = run([*command, file], folder)
    assert re.search(r'person"?[ ,].*0\.8[78]', told), told


def test_curl_finds_the_person_and_brings_a_picture(server: str, folder: Path) -> None:
    need("curl", "curl")
    found = json.loads(run(["bash", "-c", here(block("sh"), server)], folder))["results"][0]["objects"]
    assert [one["label"] for one in found] == ["person"]
    run(["bash", "-c", here(block("sh", 1), server)], folder)
    assert (folder / "seen.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def test_a_typescript_client_made_from_the_document_compiles_and_asks(server: str, folder: Path) -> None:
    need("npm", "npm")
    install, code = here(block("sh", 2), server), here(block("ts"), server)
    pinned = json.loads((PACKAGES / "package.json").read_text())
    for name, version in {**pinned["dependencies"], **pinned["devDependencies"]}.items():
        assert f"{name}@{version}" in install or name == "@types/node"
    for file in PACKAGES.iterdir():
        shutil.copy(file, folder)
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True)
    if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr):
        pytest.skip("the npm registry is not reached")
    assert done.returncode == 0, done.stderr
    run(["bash", "-c", install.strip().splitlines()[1]], folder)
    (folder / "client.ts").write_text(code)
    wrong = code.replace("  body: {", "  // @ts-expect-error\n  body: {").replace("min_score: 0.5", 'min_score: "high"')
    (folder / "wrong.ts").write_text(wrong)
    run(["npx", "tsc", *TSC, "client.ts", "wrong.ts"], folder)
    assert run(["node", "client.js"], folder).startswith("person 0.8")


def test_the_document_is_valid(server: str) -> None:
    document = httpx.get(f"{server}/docs.json").json()
    OpenAPIV31SpecValidator(document).validate()
    broken = {**document, "paths": {**document["paths"], "/detect": {"post": {"responses": []}}}}
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())
