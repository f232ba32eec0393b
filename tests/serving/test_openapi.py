"""The OpenAPI description: valid, of every route and field, and true of what is sent."""

import json
from functools import cache
from typing import Any

import httpx2
import jsonschema
import openapi_spec_validator
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.neutral_fields import IGNORED, MESSAGE_NEUTRAL, REQUEST_NEUTRAL
from mav.pipeline.serving.api.openapi import OPERATIONS, openapi_description
from mav.pipeline.serving.api.request_schema import (
    ChatFields,
    InputMessage,
    SharedFields,
    TextFields,
    validated,
)
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.static_files import page_files
from tests.support.running.server import CHAT, TEXT, chat_body, running

SCHEMAS: dict[str, Any] = openapi_description()["components"]["schemas"]
USER = {"role": "user", "content": "Hi"}


@cache
def checker(name: str) -> jsonschema.Draft202012Validator:
    reference = f"#/components/schemas/{name}"
    return jsonschema.Draft202012Validator({"$ref": reference, "components": {"schemas": SCHEMAS}})


def fits(name: str, value: Any) -> None:
    checker(name).validate(value)


def answer_of(web: httpx2.Client, method: str, path: str, **sent: Any) -> Any:
    """Return an answer, which must be as the description has it for the route."""
    response = web.request(method, path, **sent)
    route = next(one for one in OPERATIONS if one.path.partition("{")[0] in (path, path[:11]))
    responses = openapi_description()["paths"][route.path][method.lower()]["responses"]
    described = responses["200" if response.is_success else "default"]["content"]
    kind = response.headers["content-type"].partition(";")[0]
    name = described[kind]["schema"]["$ref"].rpartition("/")[2]
    if kind != "text/event-stream":
        fits(name, response.json())
        return response.json()
    *chunks, last = response.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    for chunk in chunks:
        fits(name, json.loads(chunk.removeprefix("data: ")))
    return chunks


def test_it_is_valid_and_served(web: httpx2.Client) -> None:
    description = web.get("/openapi.json").json()
    openapi_spec_validator.validate(description, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    assert description == openapi_description()


def test_every_route_is_in_it(server: HttpServer) -> None:
    found: set[tuple[str, str]] = set()
    app: Any = server.config.app
    while not hasattr(app, "routes"):
        app = app.app if hasattr(app, "app") else app._app
    for route in app.routes:
        found |= {(method.lower(), route.path) for method in route.methods - {"HEAD"}}
    page = {("get", file.path) for file in page_files()}
    described = {(one.method, one.path.replace("{name}", "{name:path}")) for one in OPERATIONS}
    assert found == page | described


@pytest.mark.parametrize("model", [ChatFields, TextFields])
def test_every_field_that_is_taken_is_in_it_and_no_other(model: type[SharedFields]) -> None:
    taken = {*model.model_fields, *REQUEST_NEUTRAL, *IGNORED}
    assert SCHEMAS[model.__name__]["properties"].keys() == taken
    message = SCHEMAS["InputMessage"]["properties"].keys()
    assert message == {*InputMessage.model_fields, *MESSAGE_NEUTRAL}
    for schema in SCHEMAS.values():
        if schema["title"] != "Description":
            assert schema.get("additionalProperties") is False


_NUMBERS = st.sampled_from([-101, -3, -2, -1.5, -1, 0, 0.5, 1, 1.5, 2, 3, 20, 21, 101, 1024])
_ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, "", "a", "a" * 300, [], ["a"], ["a"] * 5, [1], [[1, 2]], {}, {"a": 1}]
)
_FORMATS = st.sampled_from(
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "null"}}},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        {"type": "json_schema", "json_schema": {"name": "a"}},
        {"type": "json_schema"},
        {"type": "xml"},
    ]
)
_MESSAGES: st.SearchStrategy[Any] = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
        optional={
            "content": st.sampled_from(["Hi", None, [], [{"type": "text", "text": "a"}], [{}], 5]),
            "name": st.sampled_from(["me", None, 3]),
            "refusal": st.sampled_from(["", None, "no"]),
            "tool_calls": st.sampled_from([[], None, [{}]]),
            "colour": st.just("red"),
        },
    ),
    max_size=2,
)


def _bodies(model: type[SharedFields], required: str, good: Any) -> st.SearchStrategy[Any]:
    names = sorted({*model.model_fields, *REQUEST_NEUTRAL, *IGNORED, "colour"} - {"best_of"})
    neutral = [value for values in REQUEST_NEUTRAL.values() for value in values]
    anything = _NUMBERS | _ODD | _FORMATS | st.sampled_from(neutral)
    fields = st.dictionaries(st.sampled_from(names), anything, max_size=3)
    first = st.sampled_from([good, good, good, None]) | (
        _MESSAGES if required == "messages" else anything
    )
    return st.builds(lambda body, value: {**body, required: value}, fields, first)


@pytest.mark.parametrize("model", [ChatFields, TextFields])
@given(data=st.data())
def test_it_takes_what_the_server_takes(model: type[SharedFields], data: st.DataObject) -> None:
    required, good = ("messages", [USER]) if model is ChatFields else ("prompt", "Hi")
    body = data.draw(_bodies(model, required, good))
    if body.get("colour", 0) is None:
        del body["colour"]
    try:
        validated(model, body)
    except ApiError:
        taken = False
    else:
        taken = True
    assert checker(model.__name__).is_valid(body) == taken, body


ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"n": 2, "logprobs": True, "top_logprobs": 2, "steer_above": 1}),
    (CHAT, {"stream": True, "logprobs": True, "stream_options": {"include_usage": True}}),
    (CHAT, {"alpha": "strong"}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (TEXT, {"logprobs": 2, "echo": True}),
    (TEXT, {"logprobs": 0, "stream": True, "stream_options": {"include_usage": True}, "n": 2}),
    (TEXT, {"max_tokens": 0}),
]


@pytest.mark.parametrize(("path", "fields"), ASKED, ids=str)
def test_completions_are_as_described(
    web: httpx2.Client, path: str, fields: dict[str, Any]
) -> None:
    body = chat_body(**fields)
    if path == TEXT:
        body["prompt"] = "Hi" if body.pop("messages") else ""
    assert answer_of(web, "POST", path, json=body)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/first", "/v1/models/none", "/health", "/version"]
)
def test_other_answers_are_as_described(web: httpx2.Client, path: str) -> None:
    assert answer_of(web, "GET", path)
    assert answer_of(web, "GET", "/openapi.json")["openapi"] == "3.1.0"


def test_health_without_the_key_is_as_described(head: str, bases: tuple[str, str]) -> None:
    with (
        running(head=head, bases=bases[:1], api_key="sesame") as server,
        httpx2.Client(base_url=server.url) as stranger,
    ):
        assert answer_of(stranger, "GET", "/health") == {"status": "ok"}
        for path in ("/openapi.json", "/version", "/metrics", "/v1/models", "/nothing"):
            assert stranger.get(path).status_code == 401
            response = stranger.get(path, headers={"Authorization": "Bearer sesame"})
            assert response.status_code == (404 if path == "/nothing" else 200)
        known = {"Authorization": "Bearer sesame"}
        assert answer_of(stranger, "GET", "/health", headers=known)["base"] == "first"
        assert stranger.get("/").status_code == 200


@pytest.mark.parametrize(
    ("message", "taken"),
    [
        ({"role": "assistant"}, True),
        ({"role": "assistant", "content": None}, True),
        ({"role": "assistant", "content": "Hi", "tool_calls": []}, True),
        ({"role": "assistant", "content": "Hi", "tool_calls": [{}]}, False),
        ({"role": "user"}, False),
        ({"role": "user", "content": None}, False),
        ({"role": "user", "content": [{"type": "text", "text": "a"}], "name": None}, True),
    ],
    ids=str,
)
def test_it_takes_the_messages_the_server_takes(message: dict[str, Any], taken: bool) -> None:
    body = {"messages": [message, USER]}
    assert checker("ChatFields").is_valid(body) == taken
    if taken:
        validated(ChatFields, body)
    else:
        with pytest.raises(ApiError):
            validated(ChatFields, body)
