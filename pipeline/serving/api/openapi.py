"""The OpenAPI description of the routes, made of the models that validate requests."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mav.pipeline.runtime.versions import package_versions
from mav.pipeline.serving.api import response_schema as answers
from mav.pipeline.serving.api.neutral_fields import (
    IGNORED,
    MESSAGE_NEUTRAL,
    REQUEST_NEUTRAL,
    Neutral,
)
from mav.pipeline.serving.api.request_schema import ChatFields, InputMessage, TextFields

_REF: Final = "#/components/schemas/{model}"
_JSON: Final = "application/json"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route.

    Attributes:
        method: HTTP method, in lower case.
        path: Its path, parameters in braces.
        summary: What it does.
        answer: Model of the response's JSON, or None for plain text.
        body: Model of the request's JSON, if it takes any.
        chunk: Model of each event's data, where the response can be streamed.
    """

    method: str
    path: str
    summary: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None


OPERATIONS: Final = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        summary="The next turn of a conversation",
        body=ChatFields,
        answer=answers.ChatCompletion,
        chunk=answers.ChatChunk,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        summary="The continuation of a text",
        body=TextFields,
        answer=answers.TextCompletion,
        chunk=answers.TextChunk,
    ),
    Operation(method="get", path="/v1/models", summary="The bases", answer=answers.Models),
    Operation(method="get", path="/v1/models/{name}", summary="A base", answer=answers.Model),
    Operation(
        method="get",
        path="/health",
        summary="Whether the server accepts requests; with status 503 if not",
        answer=answers.Health,
    ),
    Operation(method="get", path="/version", summary="The version", answer=answers.Version),
    Operation(
        method="get", path="/metrics", summary="Metrics in Prometheus' text format", answer=None
    ),
    Operation(
        method="get",
        path="/openapi.json",
        summary="This description",
        answer=answers.Description,
    ),
)
"""All routes but the files of the web page."""


@cache
def openapi_description() -> dict[str, Any]:
    """Return the description, of version 3.1 of OpenAPI."""
    models: dict[type[BaseModel], None] = {answers.Error: None}
    for operation in OPERATIONS:
        models |= dict.fromkeys(
            model for model in (operation.body, operation.answer, operation.chunk) if model
        )
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF
    )
    schemas: dict[str, Any] = definitions["$defs"]
    for model in (ChatFields, TextFields):
        _add_accepted(schemas[model.__name__], REQUEST_NEUTRAL)
        properties = schemas[model.__name__]["properties"]
        properties["best_of"] = {"description": "Accepted where it is what `n` is."}
        properties |= {name: {"description": "Ignored."} for name in IGNORED}
    message = schemas[InputMessage.__name__]
    _add_accepted(message, MESSAGE_NEUTRAL)
    _let_assistants_be_silent(message)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MAV",
            "version": package_versions(["mav-align"])["mav-align"],
            "description": "OpenAI's API with alpha, the strength of the heads. A field that is "
            "null counts as not given.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Either: a server that has no key asks for none.
        "security": [{}, {"key": []}],
    }


def _add_accepted(schema: dict[str, Any], neutral: Neutral) -> None:
    """Add fields that are not supported, and yet accepted at neutral values."""
    for name, values in neutral.items():
        schema["properties"].setdefault(
            name,
            {"enum": [*values, None], "description": "Not supported; accepted at these values."},
        )


def _let_assistants_be_silent(message: dict[str, Any]) -> None:
    """State that `content` may be left out or null in an assistant's message alone."""
    content = message["properties"]["content"]
    content["anyOf"] = [*content["anyOf"], {"type": "null"}]
    message["required"] = ["role"]
    message["if"] = {"properties": {"role": {"const": "assistant"}}}
    message["else"] = {
        "required": ["content"],
        "properties": {"content": {"not": {"type": "null"}}},
    }


def _described(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {_JSON: _schema(operation.answer)}
    if operation.chunk is not None:
        content["text/event-stream"] = _schema(operation.chunk)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _identifier(operation),
        "responses": {
            "200": {"description": operation.summary, "content": content},
            "default": {
                "description": "An error",
                "content": {_JSON: _schema(answers.Error)},
            },
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {_JSON: _schema(operation.body)}}
    if "{name}" in operation.path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        described["parameters"] = [name]
    return described


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)}}


def _identifier(operation: Operation) -> str:
    words = (
        operation.path.removesuffix(".json").replace("v1/", "").replace("{", "").replace("}", "")
    )
    return "_".join([operation.method, *words.strip("/").split("/")])
