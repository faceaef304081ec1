"""The documentation page is our own, and no answer of the service makes a browser ask anybody else."""

import re
import subprocess

import httpx
import pytest

from testkit.photographs import PHOTOS
from testkit.programs import need
from testkit.servers import ROOT
from vision.api.door import PAGES
from vision.api.page import FILES

OUTSIDE = re.compile(r"(?:https?:)?//(?!127\.0\.0\.1[:/])[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)


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
        told = answer.text + "".join(answer.headers.values())
        assert not OUTSIDE.findall(told), answer.url


@pytest.mark.parametrize("path", FILES)
def test_the_page_lets_a_browser_load_from_here_only(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if path == "/":
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", answer.text)  # the policy forbids them
        loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert {"page.css", "page.js"} <= set(loaded)
        for one in loaded:
            assert client.get(f"/{one}").status_code == 200


def test_the_pages_script_is_javascript() -> None:
    need("node", "nodejs")
    script = (ROOT / "vision" / "api" / "page" / "page.js").read_text()
    run = subprocess.run(["node", "--check", "-"], input=script, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
