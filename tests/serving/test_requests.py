"""Requests that are refused in OpenAI's error form, and those whose fields are ignored."""

import json
from typing import Any

import httpx2
import openai
import pytest
from pydantic import ValidationError

from mav.pipeline.serving.api.errors import ApiError
from mav.pipeline.serving.api.requests import chat_request, text_request
from mav.pipeline.serving.options import ServeOptions
from tests.support.running.server import CHAT, TEXT, chat_body, error_of


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.con"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e400}, None),
        ({"temperature": float("nan")}, None),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"n": 1.5}, "n"),
        ({"stop": [1]}, "stop"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "a" * 300}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"alpha": "strong"}, "alpha"),
        ({"alpha": "0:1,nan:2"}, "alpha"),
        ({"alpha": 1e9}, "alpha"),
        ({"alpha": [1]}, "alpha"),
        ({"alpha": "0:1," + "9" * 400 + ":2"}, "alpha"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"colour": "red"}, "colour"),
        ({"messages": [{"role": "user", "content": "Hi", "name": 3}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "Hi", "colour": "red"}]}, "messages.0.colour"),
        (
            {"messages": [{"role": "assistant", "content": "Hi", "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls",
        ),
        ({"messages": [{"role": "assistant", "content": "", "audio": {"id": "1"}}]}, "messages.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"messages": [{"role": "user", "content": "Hi"}] * 3000}, "messages"),
    ],
    ids=str,
)
def test_an_invalid_field_is_named(
    web: httpx2.Client, changes: dict[str, Any], param: str | None
) -> None:
    content = json.dumps(chat_body(**changes))
    response = web.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    if param is None:
        assert error["code"] == "not_json" or error["param"] == "temperature"
    else:
        assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 200_000, "application/json"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"prompt": "\\ud800"}', "application/json"),
        (b'{"prompt": NaN}', "application/json"),
        (b'{"prompt": "Hi"}', "text/plain"),
        (b"prompt=Hi", "application/x-www-form-urlencoded"),
        (b'{"prompt": "Hi"}', None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_is_not_a_json_object(
    web: httpx2.Client, content: bytes, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert error_of(web.post(TEXT, content=content, headers=headers), 400)["code"] == "not_json"


NEUTRAL: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": "auto",
    "function_call": "auto",
    "response_format": {"type": "text", "json_schema": None},
    "user": "me",
    "metadata": {"any": "thing"},
    "stop": ["", ""],
    "logprobs": False,
    "top_logprobs": 0,
    "stream": False,
    "stream_options": {"include_usage": False, "include_obfuscation": None},
    "modalities": ["text"],
    "verbosity": "medium",
    "n": 2,
    "best_of": 2,
    "model": "",
    "chat_template_kwargs": {},
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1.0,
}


def sent(web: httpx2.Client, body: dict[str, Any]) -> httpx2.Response:
    """Post a body with its null fields."""
    content = json.dumps(body)
    return web.post(CHAT, content=content, headers={"Content-Type": "application/json"})


def test_neutral_values_are_accepted_and_change_nothing(web: httpx2.Client) -> None:
    plain = sent(web, chat_body())
    neutral = sent(web, {**chat_body(), **NEUTRAL})
    assert neutral.status_code == 200, neutral.text
    contents = {choice["message"]["content"] for choice in neutral.json()["choices"]}
    assert contents == {plain.json()["choices"][0]["message"]["content"]}
    nulls = dict.fromkeys((*NEUTRAL, "alpha", "seed", "max_completion_tokens", "colour"))
    assert sent(web, {**nulls, **chat_body()}).json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Hi", "annotations": [], "audio": None, "function_call": None},
        {"content": "Hi", "tool_calls": None, "refusal": None, "parsed": None},
        {"content": "Hi", "tool_calls": [], "refusal": "", "name": "writer"},
        {"content": [{"type": "text", "text": "Hi", "cache_control": None}]},
    ],
    ids=str,
)
def test_a_message_is_accepted_as_clients_send_it_back(
    web: httpx2.Client, turn: dict[str, Any]
) -> None:
    user = {"role": "user", "content": "Hello", "name": "user"}

    def choices(message: dict[str, Any]) -> Any:
        body = chat_body(messages=[user, {"role": "assistant", **message}, user])
        response = sent(web, body)
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    assert choices(turn) == choices({"content": "Hi"})


def test_an_assistants_message_without_content_is_empty(web: httpx2.Client) -> None:
    user = {"role": "user", "content": "Hello"}
    turns: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}]
    bodies = [chat_body(messages=[user, {"role": "assistant", **t}, user]) for t in turns]
    first, *others = [sent(web, body).json()["choices"] for body in bodies]
    assert others == [first, first]


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ({"prompt": "word " * 3000, "max_tokens": 8}, ("8192",)),
        ({"prompt": "word " * 10, "max_tokens": 250}, ("250", "256", "31")),
        ({"prompt": ""}, ("no tokens",)),
        ({"prompt": ["Hi", ""]}, ("no tokens",)),
    ],
    ids=["prompt", "both", "none", "one of two"],
)
def test_a_prompt_too_long_or_empty(
    web: httpx2.Client, body: dict[str, Any], numbers: tuple[str, ...]
) -> None:
    message = error_of(web.post(TEXT, json=body), 400)["message"]
    assert all(number in message for number in numbers), message


def test_unknown_bases_paths_and_methods(web: httpx2.Client, ai: openai.OpenAI) -> None:
    error = error_of(web.post(CHAT, json=chat_body(model="third")), 404)
    assert "first, second" in error["message"]
    with pytest.raises(openai.NotFoundError, match="third"):
        ai.completions.create(model="third", prompt="Hi")
    error_of(web.get("/v1/nothing"), 404)
    error_of(web.get("/docs"), 404)
    assert "POST" in web.get(CHAT).headers["allow"]
    error_of(web.get(CHAT), 405)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{}] * 200_000}),
        (CHAT, {"messages": [0] * 300_000}),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 200_000}]}),
        (TEXT, {"prompt": ["", 0] * 100_000}),
        (TEXT, {"prompt": [[0.5]] * 100_000}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_validation_stops_at_the_first_error(web: httpx2.Client, path: str, body: Any) -> None:
    options = ServeOptions(head="none", max_new_tokens=16, max_rows=8)
    with pytest.raises(ApiError) as caught:
        (chat_request if path == CHAT else text_request)(body, options)
    assert isinstance(cause := caught.value.__cause__, ValidationError)
    # One error for each type that the field may have.
    assert cause.error_count() < 10
    error_of(web.post(path, json=body), 400)
