"""The pages are our own, and no answer of the service makes a browser ask anybody else."""

import re
import subprocess

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.programs import need
from testkit.servers import ROOT
from vision.api.door import PAGES
from vision.api.page import FILES, MEDIA_TYPES

OUTSIDE = re.compile(r"(?:https?:)?//(?!127\.0\.0\.1[:/])[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)
NAMESPACE = "http://www.w3.org/2000/svg"  # a name, which nobody asks for

SCRIPTS = [path for path in FILES if path.endswith(".js")]


def test_what_counts_as_an_outside_address() -> None:
    assert OUTSIDE.search('src="https://www.googletagmanager.com/gtm.js"')
    assert OUTSIDE.search("href='//cdn.example.com/a.css'")
    assert not OUTSIDE.search("http://127.0.0.1:3000/classify // a comment. Another")


def test_no_answer_holds_an_outside_address(client: httpx.Client) -> None:
    answers = [client.get(path) for path in PAGES]
    answers += [client.get(path) for path in ("/nowhere", "/static_content/swagger-ui-bundle.js", "/assets/index.js")]
    for endpoint in ("/classify", "/caption", "/detect", "/analyze"):
        answers += [client.post(endpoint, files={"images": data}) for data in (PHOTOS["bus"].read_bytes(), b"broken")]
        answers.append(client.get(endpoint))
    assert {200, 404, 405, 415} <= {answer.status_code for answer in answers}
    for answer in answers:
        if answer.headers["content-type"] == "image/jpeg":
            continue
        told = answer.text + "".join(answer.headers.values())
        assert not OUTSIDE.findall(told.replace(NAMESPACE, "")), answer.url


@pytest.mark.parametrize("path", FILES)
def test_a_page_lets_a_browser_load_from_here_only(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == MEDIA_TYPES[FILES[path].suffix]
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert set(policy) - {"default-src", "img-src"} == {"object-src", "base-uri", "form-action", "frame-ancestors"}
    assert policy["img-src"] == "'self' blob:"  # a picture that was dropped
    assert answer.headers["x-content-type-options"] == "nosniff"
    if path in ("/", "/docs"):
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", answer.text)  # the policy forbids them
        loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert "page/page.css" in loaded
        for one in loaded:
            assert client.get(f"/{one}").status_code == 200


def test_the_examples_are_those_of_the_folder() -> None:
    shown = set(re.findall(r'src="examples/(\S+)"', FILES["/"].read_text()))
    assert shown == {file.name for file in (ROOT / "examples").glob("*.jpg")}
    told = set(re.findall(r"^\| `(\S+\.jpg)`", (ROOT / "examples" / "README.md").read_text(), flags=re.MULTILINE))
    assert shown == told
    assert sum(file.stat().st_size for file in (ROOT / "examples").iterdir()) < 1_500_000


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_is_javascript_and_loads_what_is_here(path: str) -> None:
    need("node", "nodejs")
    script = FILES[path].read_text()
    check = ["node", "--check", "--input-type=module", "-"]
    run = subprocess.run(check, input=script, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    imported = re.findall(r'^import .* from "\./(.+)";$', script, flags=re.MULTILINE)
    assert len(imported) == len(re.findall(r"^import ", script, flags=re.MULTILINE)) or path.endswith("snippets.js")
    assert {f"/page/{name}" for name in imported} <= set(FILES)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage|sessionStorage|cookie", script
    )
