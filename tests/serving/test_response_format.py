"""Completions that are JSON by schema, through the server."""

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import jsonschema
import openai
import pytest

from tests.support.running.server import CHAT, TEXT, chat_body, error_of

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "good": {"type": "boolean"},
        "stars": {"enum": [1, 2, None]},
        "word": {"type": "string", "maxLength": 4},
    },
    "required": ["good", "stars", "word"],
    "additionalProperties": False,
}


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


FORMAT = format_of(SCHEMA)


def texts_of(web: httpx2.Client, path: str, **fields: Any) -> list[str]:
    body = chat_body(**{"max_tokens": 200, **fields})
    if path == TEXT:
        del body["messages"]
        body["prompt"] = "\n\nHuman: Hi\n\nAssistant:"
    response = web.post(path, json=body)
    assert response.status_code == 200, response.text
    choices = response.json()["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    return [choice["message"]["content"] if path == CHAT else choice["text"] for choice in choices]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.5, "seed": 3, "n": 3}], ids=str)
def test_it_is_kept_to_at_every_alpha(web: httpx2.Client, path: str, how: dict[str, Any]) -> None:
    for alpha in (-100, 0, 2, 100):
        for text in texts_of(web, path, response_format=FORMAT, alpha=alpha, **how):
            jsonschema.validate(json.loads(text), SCHEMA)


def test_others_in_the_batch_are_as_alone(web: httpx2.Client) -> None:
    free = chat_body(max_tokens=30, alpha=3)
    alone = web.post(CHAT, json=free).json()["choices"]
    asked = [free, chat_body(max_tokens=60, response_format=FORMAT, alpha=3)] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        found = [*pool.map(lambda body: web.post(CHAT, json=body).json()["choices"], asked)]
    assert [found[0], found[2], found[4]] == [alone] * 3
    assert found[1] == found[3] == found[5] != alone


def test_a_stream_is_the_same_text(web: httpx2.Client, ai: openai.OpenAI) -> None:
    (whole,) = texts_of(web, CHAT, response_format=FORMAT)
    asked: Any = chat_body(max_tokens=200, response_format=FORMAT)
    stream = ai.chat.completions.create(model="first", stream=True, **asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_log_probabilities_are_those_before_the_mask(web: httpx2.Client) -> None:
    asked = {"prompt": "Hi", "max_tokens": 1, "temperature": 0, "logprobs": 20}
    free, kept = (
        web.post(TEXT, json={**asked, **changes}).json()["choices"][0]["logprobs"]
        for changes in ({}, {"response_format": FORMAT})
    )
    assert kept["top_logprobs"] == free["top_logprobs"]
    assert kept["tokens"][0].strip() == "{" != free["tokens"][0].strip()


def test_it_is_cut_at_max_tokens(web: httpx2.Client) -> None:
    body = chat_body(max_tokens=3, response_format=FORMAT)
    (choice,) = web.post(CHAT, json=body).json()["choices"]
    assert choice["finish_reason"] == "length"


def test_any_object_and_plain_text(web: httpx2.Client) -> None:
    plain = web.post(CHAT, json=chat_body()).json()["choices"]
    as_text = chat_body(response_format={"type": "text"})
    assert web.post(CHAT, json=as_text).json()["choices"] == plain
    body = chat_body(response_format={"type": "json_object"}, max_tokens=40)
    (choice,) = web.post(CHAT, json=body).json()["choices"]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_openais_client_parses_it(ai: openai.OpenAI) -> None:
    from pydantic import BaseModel, ConfigDict

    class Review(BaseModel):
        model_config = ConfigDict(extra="forbid")
        good: bool
        stars: int | None

    answer = ai.chat.completions.parse(
        model="first",
        messages=[{"role": "user", "content": "How is it?"}],
        response_format=Review,
        max_tokens=200,
        temperature=0,
        extra_body={"logit_bias": {"32": 0}},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(answer.choices[0].message.parsed, Review)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "thing"}, "Invalid type"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"enum": ["x" * 40_000]}, "32768"),
        ({"type": "integer", "multipleOf": 99999989}, "multipleOf"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_that_is_refused(web: httpx2.Client, schema: Any, said: str) -> None:
    error = error_of(web.post(CHAT, json=chat_body(response_format=format_of(schema))), 400)
    assert said in error["message"]
    assert error["param"].startswith("response_format")


def test_without_the_library_the_extra_is_named(
    web: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "llguidance" else there(name)
    )
    error = error_of(web.post(CHAT, json=chat_body(response_format=FORMAT)), 400)
    assert "pip install 'mav-align[json]'" in error["message"]
    assert (error["param"], error["code"]) == ("response_format", "unsupported")
    as_text = chat_body(response_format={"type": "text"})
    assert web.post(CHAT, json=as_text).status_code == 200


def test_a_text_that_cannot_go_on_fails_alone(
    web: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mav.pipeline.decoding.structured.constraint import Constraint

    def stuck(self: Constraint, logits: Any) -> Any:
        self.error = "the schema is too complex"
        return logits

    monkeypatch.setattr(Constraint, "masked", stuck)
    for stream in (False, True):
        body = chat_body(response_format=FORMAT, stream=stream, n=2)
        assert "too complex" in web.post(CHAT, json=body).text
    assert web.post(CHAT, json=chat_body()).status_code == 200
