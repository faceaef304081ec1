"""The OpenAPI document is a contract: a change shows in the snapshot's diff, and real answers fit it."""

import json
import os
from typing import Any

import httpx
import jsonschema
import pytest

from testkit.photographs import PHOTOS
from testkit.servers import ROOT
from vision.api.endpoints import ENDPOINTS

SNAPSHOT = ROOT / "tests" / "openapi.json"


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/docs.json").json()
    return document


def test_the_document_equals_its_snapshot(document: dict[str, Any]) -> None:
    """UPDATE_SNAPSHOT=1 make test writes it again; the diff is what reviewers look at."""
    ours = {name: document["paths"][name] for name in (*ENDPOINTS, "/models")}
    text = json.dumps({"paths": ours, "schemas": document["components"]["schemas"]}, indent=1) + "\n"
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("pictures", [["bus"], ["bus", "broken"], ["broken"], ["broken", "broken"]])
def test_real_answers_fit_the_document(
    client: httpx.Client, document: dict[str, Any], endpoint: str, pictures: list[str]
) -> None:
    photos = {"bus": PHOTOS["bus"].read_bytes(), "broken": b"broken"}
    response = client.post(endpoint, files=[("images", photos[name]) for name in pictures])
    described = document["paths"][endpoint]["post"]["responses"][str(response.status_code)]
    schema = described["content"]["application/json"]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": document["components"]})


def test_every_form_of_a_body_and_every_error_are_described(document: dict[str, Any]) -> None:
    for endpoint in ENDPOINTS:
        operation = document["paths"][endpoint]["post"]
        forms = operation["requestBody"]["content"]
        one_alone = {"image/*", "application/octet-stream"} if ENDPOINTS[endpoint].least == 1 else set()
        assert set(forms) == {"multipart/form-data", "application/json", *one_alone}
        options = set(forms["application/json"]["schema"]["properties"]) - {"images"}
        assert {parameter["name"] for parameter in operation["parameters"]} == options
        statuses = "200 400 401 403 408 413 415 422 429 500 503 504".split()
        assert list(operation["responses"]) == statuses
        for status in statuses[1:]:
            examples = operation["responses"][status]["content"]["application/json"]["examples"]
            assert all(examples[code]["value"]["error"]["code"] == code for code in examples)
    assert "get" in document["paths"]["/models"]
