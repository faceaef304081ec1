"""The service's OpenAPI document, made from schemas.py: every form of a body, exact results, every error."""

from http import HTTPStatus
from typing import Any, get_args

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

import vision
from vision.api.endpoints import ENDPOINTS, Endpoint
from vision.api.requests import FORM, JSON
from vision.core.draw import MediaType
from vision.core.errors import KINDS, RETRY_AFTER, Code, VisionError
from vision.core.schemas import Card, Failure
from vision.settings import SETTINGS

NOT_FROM_ENDPOINTS = (Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED)
KEY: list[dict[str, list[str]]] = [{}, {"key": []}]  # needed only where the operator set keys


ABOUT = "Looks at pictures: which class, what a sentence would say, which objects and where."

BYTES: dict[str, Any] = {"type": "string", "format": "binary"}

PICTURES = "The pictures; a body without `images` may call them `images[]`, `image` or `file`."

Schema = dict[str, Any]


class ListedModel(Card):
    """A model as GET /models lists it: its card, and how it is served."""

    default: bool = Field(description="Whether its task's requests that name no model ask it.")
    memory_bytes: int | None = Field(
        description="What it took of its runner's private memory; null where the runner cannot say now."
    )


def contract() -> tuple[Schema, Schema, Schema]:
    """Return info, paths and schemas: every form of a body, exact results, every error, and our pages."""
    models: list[type[BaseModel]] = [Failure, ListedModel]
    for endpoint in ENDPOINTS.values():
        models += filter(None, (endpoint.options, endpoint.result, endpoint.beside))
    _, definitions = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = definitions["$defs"]
    paths: Schema = {path: {"get": operation} for path, operation in _pages().items()}
    for path, endpoint in ENDPOINTS.items():
        paths[path] = {"post": _operation(endpoint, schemas[endpoint.options.__name__])}
    return {"title": "vision", "version": vision.__version__, "description": ABOUT}, paths, schemas


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _request(options: Schema, picture: Schema, least: int) -> Schema:
    images = {**_list_of(picture), "minItems": least, "maxItems": SETTINGS.max_images, "description": PICTURES}
    return {"schema": {**options, "properties": {"images": images, **options["properties"]}, "required": ["images"]}}


def _parameters(options: Schema) -> list[Schema]:
    """The options in the query string."""
    return [{"name": name, "in": "query", "schema": schema} for name, schema in options["properties"].items()]


def _operation(endpoint: Endpoint, options: Schema) -> Schema:
    results = _list_of({"anyOf": [_ref(endpoint.result.__name__), _ref("Failure")]})
    beside = {endpoint.name: _ref(endpoint.beside.__name__)} if endpoint.beside else {}
    alone = endpoint.least == 1
    failed = {**_object(error=_ref("ErrorBody"), results=results), "required": ["error"]}
    return {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "tags": ["Service APIs"],
        "security": KEY,
        "description": "Options stand in the body or in the query string, each in one of them.",
        "parameters": _parameters(options),
        "requestBody": {
            "required": True,
            "content": {
                FORM: _request(options, BYTES, endpoint.least),
                JSON: _request(options, {"type": "string", "contentEncoding": "base64"}, endpoint.least),
                **({"image/*": {"schema": BYTES}, "application/octet-stream": {"schema": BYTES}} if alone else {}),
            },
        },
        "responses": {
            "200": _answer(_object(**beside, results=results), alone),
            **{str(status): _error(status, failed) for status in _error_statuses()},
        },
    }


def _answer(schema: Schema, drawn: bool) -> Schema:
    """The answer as JSON, and of endpoints that take one picture as that picture, too."""
    told = "One result a picture, in order; a failed picture has its error there."
    if not drawn:
        return _json(told, schema)
    answer = _json(
        f"{told} Where `Accept` prefers a picture to JSON, the one picture with what was seen drawn on it.", schema
    )
    answer["content"] |= {media_type: {"schema": BYTES} for media_type in get_args(MediaType)}
    return answer


def _error_statuses() -> list[int]:
    return sorted({kind.status for code, kind in KINDS.items() if code not in NOT_FROM_ENDPOINTS})


def _error(status: int, schema: Schema) -> Schema:
    codes = [code for code, kind in KINDS.items() if kind.status == status]
    response = _json(f"{HTTPStatus(status).phrase}: {', '.join(codes)}.", schema)
    response["content"]["application/json"]["examples"] = {code: {"value": _example(code)} for code in codes}
    if status in RETRY_AFTER:
        response["headers"] = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
    return response


def _example(code: Code) -> Schema:
    failure = Failure.of(VisionError(code, "What went wrong, and what to do."))
    failure.error.request_id = "5f0c7a"
    return failure.model_dump(mode="json")


def _pages() -> dict[str, Schema]:
    """The GET endpoints of ours."""
    failed = _object(error=_ref("ErrorBody"))
    states = {"type": "object", "additionalProperties": {"enum": ["ready", "starting", "unreachable", "stopping"]}}
    readiness = _object(ready={"type": "boolean"}, runners=states, models=states)
    libraries = {"type": "object", "additionalProperties": {"type": "string"}}
    version = _object(version={"type": "string"}, bento={"type": "string"}, libraries=libraries)
    keys = {str(status): _error(status, failed) for status in (401, 403)}
    cards = _object(models=_list_of(_ref("ListedModel")))
    return {
        "/models": {
            "operationId": "models",
            "summary": "Which models are served, from their cards.",
            "tags": ["Service APIs"],
            "security": KEY,
            "responses": {"200": _json("A task's models stand together, its default first.", cards), **keys},
        },
        "/version": {
            "operationId": "version",
            "summary": "What runs here.",
            "tags": ["Service APIs"],
            "responses": {"200": _json("The service's version, the Bento's, the libraries'.", version)},
        },
        "/readyz": {
            "operationId": "readyz",
            "summary": "Whether it can answer now, and the state of each runner and model.",
            "tags": ["Infrastructure"],
            "responses": {"200": _json("It can.", readiness), "503": _error(503, {"allOf": [failed, readiness]})},
        },
    }
