"""The service's OpenAPI document, made from schemas.py: both body forms, exact results, every error."""

from http import HTTPStatus
from typing import Any

import attrs
from _bentoml_sdk import Service
from bentoml._internal.service.openapi.specification import OpenAPISpecification
from pydantic.json_schema import models_json_schema

import vision
from vision.errors import KINDS, RETRY_AFTER, Code, VisionError
from vision.schemas import (
    AnalyzeOptions,
    AnalyzeResult,
    CaptionOptions,
    CaptionResult,
    Card,
    ClassifyOptions,
    ClassifyResult,
    DetectOptions,
    DetectResult,
    Failure,
    Options,
    PictureResult,
)
from vision.settings import SETTINGS

ENDPOINTS: dict[str, tuple[type[Options], type[PictureResult]]] = {
    "/classify": (ClassifyOptions, ClassifyResult),
    "/caption": (CaptionOptions, CaptionResult),
    "/detect": (DetectOptions, DetectResult),
    "/analyze": (AnalyzeOptions, AnalyzeResult),
}
NOT_FROM_ENDPOINTS = (Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED)
KEY: list[dict[str, list[str]]] = [{}, {"key": []}]  # needed only where the operator set keys


ABOUT = "Looks at pictures: which class, what a sentence would say, which objects and where."

Schema = dict[str, Any]


@attrs.frozen
class Document(OpenAPISpecification):
    """BentoML's own document with paths and schemas of ours in place of those it generates for the endpoints."""

    our_paths: Schema = attrs.field(factory=dict)
    our_schemas: Schema = attrs.field(factory=dict)

    def asdict(self) -> Schema:
        document = super().asdict()
        paths, schemas = document.pop("our_paths"), document.pop("our_schemas")
        document["info"] = {"title": "vision", "version": vision.__version__, "description": ABOUT}
        components = {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        return {**document, "paths": {**document["paths"], **paths}, "components": components}


class DocumentedService(Service[Any]):
    """A BentoML Service whose document is exact: the generated one knows no JSON form, no errors, no GET /models."""

    @property
    def openapi_spec(self) -> Document:
        generated = super().openapi_spec
        _, definitions = models_json_schema(
            [(model, "serialization") for pair in ENDPOINTS.values() for model in (*pair, Failure, Card)],
            ref_template="#/components/schemas/{model}",
        )
        schemas = definitions["$defs"]
        paths: Schema = {path: {"get": operation} for path, operation in _pages().items()}
        for path, (options, result) in ENDPOINTS.items():
            doc = self.apis[path.removeprefix("/")].doc
            paths[path] = {"post": _operation(path, doc, schemas[options.__name__], result)}
        return Document(
            openapi="3.1.0",
            info=generated.info,
            servers=generated.servers,
            tags=generated.tags,
            paths={path: item for path, item in generated.paths.items() if path not in ENDPOINTS},
            our_paths=paths,
            our_schemas=schemas,
        )


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _request(options: Schema, picture: Schema) -> Schema:
    images = {**_list_of(picture), "minItems": 1, "maxItems": SETTINGS.max_images, "description": "The pictures."}
    return {"schema": {**options, "properties": {"images": images, **options["properties"]}, "required": ["images"]}}


def _operation(path: str, doc: str | None, options: Schema, result: type[PictureResult]) -> Schema:
    results = _list_of({"anyOf": [_ref(result.__name__), _ref("Failure")]})
    failed = {**_object(error=_ref("ErrorBody"), results=results), "required": ["error"]}
    return {
        "operationId": path.removeprefix("/"),
        "summary": doc,
        "tags": ["Service APIs"],
        "security": KEY,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _request(options, {"type": "string", "format": "binary"}),
                "application/json": _request(options, {"type": "string", "contentEncoding": "base64"}),
            },
        },
        "responses": {
            "200": _json(
                "One result a picture, in order; a failed picture has its error there.", _object(results=results)
            ),
            **{str(status): _error(status, failed) for status in _error_statuses()},
        },
    }


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
    runners = {"type": "object", "additionalProperties": {"enum": ["ready", "starting", "unreachable", "stopping"]}}
    readiness = _object(ready={"type": "boolean"}, runners=runners)
    libraries = {"type": "object", "additionalProperties": {"type": "string"}}
    version = _object(version={"type": "string"}, bento={"type": "string"}, libraries=libraries)
    keys = {str(status): _error(status, failed) for status in (401, 403)}
    cards = _object(models=_list_of(_ref("Card")))
    return {
        "/models": {
            "operationId": "models",
            "summary": "Which models are served, from their cards.",
            "tags": ["Service APIs"],
            "security": KEY,
            "responses": {"200": _json("One card a task.", cards), **keys},
        },
        "/version": {
            "operationId": "version",
            "summary": "What runs here.",
            "tags": ["Service APIs"],
            "responses": {"200": _json("The service's version, the Bento's, the libraries'.", version)},
        },
        "/readyz": {
            "operationId": "readyz",
            "summary": "Whether it can answer now, and the state of each runner.",
            "tags": ["Infrastructure"],
            "responses": {"200": _json("It can.", readiness), "503": _error(503, {"allOf": [failed, readiness]})},
        },
    }
