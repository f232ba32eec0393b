"""What the server does not take: said with the right status, in OpenAI's form, never a 500."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from pydantic import ValidationError

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.serving import middleware
from mav.pipeline.serving.errors import ApiError
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.requests import chat_request, text_request
from tests.support.limits import EVENT
from tests.support.server import chat_body, client, http, running
from tests.support.tiny import save_base, tiny_base

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def web(server: HttpServer) -> Iterator[httpx2.Client]:
    with http(server) as one:
        yield one


def refusal(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


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
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
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
def test_a_field_at_fault_is_named(
    web: httpx2.Client, changes: dict[str, Any], param: str | None
) -> None:
    content = json.dumps(chat_body(**changes))
    answer = web.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    error = refusal(answer, 400)
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
def test_a_body_that_is_no_json_object(
    web: httpx2.Client, content: bytes, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert refusal(web.post(COMPLETE, content=content, headers=headers), 400)["code"] == "not_json"


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
    """Post a body as it is, with the fields that are null."""
    content = json.dumps(body)
    return web.post(CHAT, content=content, headers={"Content-Type": "application/json"})


def test_neutral_values_are_taken_and_change_nothing(web: httpx2.Client) -> None:
    plain = sent(web, chat_body())
    asked = sent(web, {**chat_body(), **NEUTRAL})
    assert asked.status_code == 200, asked.text
    contents = {it["message"]["content"] for it in asked.json()["choices"]}
    assert contents == {plain.json()["choices"][0]["message"]["content"]}
    nothing = dict.fromkeys((*NEUTRAL, "alpha", "seed", "max_completion_tokens", "colour"))
    assert sent(web, {**nothing, **chat_body()}).json()["choices"] == plain.json()["choices"]


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
def test_a_turn_is_taken_as_clients_send_it_back(web: httpx2.Client, turn: dict[str, Any]) -> None:
    user = {"role": "user", "content": "Hello", "name": "user"}

    def answer(middle: dict[str, Any]) -> Any:
        body = chat_body(messages=[user, {"role": "assistant", **middle}, user])
        found = sent(web, body)
        assert found.status_code == 200, found.text
        return found.json()["choices"]

    assert answer(turn) == answer({"content": "Hi"})


def test_an_answer_without_text_is_a_turn_without_text(web: httpx2.Client) -> None:
    user = {"role": "user", "content": "Hello"}
    turns: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}]
    asked = [chat_body(messages=[user, {"role": "assistant", **it}, user]) for it in turns]
    first, *others = [sent(web, body).json()["choices"] for body in asked]
    assert others == [first, first]


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/health", "/metrics", "/v1/models", "/v1/models/first"]
)
def test_head_is_answered_as_get_without_a_body(web: httpx2.Client, path: str) -> None:
    asked, want = web.head(path), web.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-type"] == want.headers["content-type"]


def test_head_is_answered_nowhere_else(web: httpx2.Client) -> None:
    assert web.head(CHAT).status_code == 405
    assert web.head("/v1/nothing").status_code == 404
    assert web.head("/health", headers={"Host": "evil.example"}).status_code == 403


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
    message = refusal(web.post(COMPLETE, json=body), 400)["message"]
    assert all(number in message for number in numbers), message


def test_unknown_bases_paths_and_methods(web: httpx2.Client, ai: openai.OpenAI) -> None:
    error = refusal(web.post(CHAT, json=chat_body(model="third")), 404)
    assert "first, second" in error["message"]
    with pytest.raises(openai.NotFoundError, match="third"):
        ai.completions.create(model="third", prompt="Hi")
    refusal(web.get("/v1/nothing"), 404)
    refusal(web.get("/docs"), 404)
    assert "POST" in web.get(CHAT).headers["allow"]
    refusal(web.get(CHAT), 405)


@pytest.mark.parametrize("announced", [True, False])
def test_too_large_a_body(web: httpx2.Client, announced: bool) -> None:
    content = json.dumps(chat_body(user="a" * 3_000_000)).encode()
    sent: Any = content if announced else iter([content[:1_500_000], content[1_500_000:]])
    answer = web.post(CHAT, content=sent, headers={"Content-Type": "application/json"})
    assert refusal(answer, 413)["code"] == "body_too_large"


def test_an_endless_body_is_not_read_to_its_end(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "_DRAIN_SECONDS", 0.1)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of(server)), EVENT) as connection:
        connection.sendall(head.encode() + b"{" * 1000)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_awaited_for_ever(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.1)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: 50\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port_of(server)), EVENT) as connection:
        connection.sendall(head.encode() + b"{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def port_of(server: HttpServer) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_is_refused(web: httpx2.Client, host: str) -> None:
    assert refusal(web.get("/v1/models", headers={"Host": host}), 403)["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_taken(web: httpx2.Client, host: str) -> None:
    assert web.get("/v1/models", headers={"Host": host}).status_code == 200


def test_the_key_is_asked_for(head: str, bases: tuple[str, str]) -> None:
    with (
        running(head=head, bases=bases[:1], api_key="open sesame") as server,
        http(server) as web,
    ):
        for path in ("/v1/models", "/metrics"):
            for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "open sesame"}):
                error = refusal(web.get(path, headers=headers), 401)
                assert error["type"] == "authentication_error"
            good = {"Authorization": "Bearer open sesame", "Host": "my.example"}
            assert web.get(path, headers=good).status_code == 200
        assert web.get("/").status_code == web.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError), client(server, key="wrong") as ai:
            ai.models.list()
        with client(server, key="open sesame") as ai:
            assert ai.completions.create(model="first", prompt="Hi", max_tokens=2).choices


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"host": "0.0.0.0"}, "--api-key"),
        ({"host": "192.168.1.5"}, "--api-key"),
        ({"host": ""}, "--api-key"),
        ({"host": "0.0.0.0", "api_key": ""}, "--api-key"),
        ({"port": 70000}, "--port: got 70000"),
        ({"max_rows": 0}, "--max-rows: got 0"),
        ({"max_queue": 0}, "--max-queue: got 0"),
        ({"alpha": float("nan")}, "--alpha: got nan"),
        ({"dtype": "int4"}, "--dtype"),
        ({"bases": ("a", "b"), "gguf_file": "c.gguf"}, "--gguf-file"),
    ],
    ids=str,
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServeOptions(head="head", **wrong)


def test_a_port_that_is_taken(server: HttpServer, head: str, bases: tuple[str, str]) -> None:
    with (
        pytest.raises(UsageError, match="cannot be listened on"),
        running(head=head, bases=bases[:1], port=port_of(server)),
    ):
        pass


def test_a_base_of_another_vocabulary_is_refused_at_the_start(
    head: str, bases: tuple[str, str], tmp_path: Path
) -> None:
    other = save_base(tiny_base(vocab_size=320), tmp_path / "other")
    with (
        pytest.raises(MismatchError, match="300 tokens"),
        running(head=head, bases=(bases[0], str(other))),
    ):
        pass


def test_a_base_that_is_there_twice_is_refused(head: str, bases: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="twice"), running(head=head, bases=bases[:1] * 2):
        pass


def test_a_refused_switch_leaves_the_base_that_is_loaded(
    head: str, bases: tuple[str, str], tmp_path: Path
) -> None:
    other = save_base(tiny_base(seed=7), tmp_path / "other")
    with running(head=head, bases=(bases[0], str(other))) as server, http(server) as web:
        before = web.post(CHAT, json=chat_body()).json()["choices"]
        save_base(tiny_base(vocab_size=320), other)
        error = refusal(web.post(CHAT, json=chat_body(model="other")), 409)
        assert "300 tokens" in error["message"]
        after = web.post(CHAT, json=chat_body()).json()
        assert (after["model"], after["choices"]) == ("first", before)
        assert 'mav_base_switches_total{result="refused"} 1.0' in web.get("/metrics").text
        assert web.get("/health").json()["base"] == "first"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{}] * 200_000}),
        (CHAT, {"messages": [0] * 300_000}),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 200_000}]}),
        (COMPLETE, {"prompt": ["", 0] * 100_000}),
        (COMPLETE, {"prompt": [[0.5]] * 100_000}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_much_that_is_wrong_is_refused_at_its_first_fault(
    web: httpx2.Client, path: str, body: Any
) -> None:
    options = ServeOptions(head="none", max_new_tokens=16, max_rows=8)
    with pytest.raises(ApiError) as caught:
        (chat_request if path == CHAT else text_request)(body, options)
    assert isinstance(found := caught.value.__cause__, ValidationError)
    # One for each type that the field may have.
    assert found.error_count() < 10
    refusal(web.post(path, json=body), 400)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_name_may_be_written_in_any_way(
    head: str, bases: tuple[str, str], scheme: str
) -> None:
    with running(head=head, bases=bases[:1], api_key="sesame") as server, http(server) as one:
        assert one.get("/v1/models", headers={"Authorization": f"{scheme} sesame"}).is_success
        refusal(one.get("/v1/models", headers={"Authorization": f"{scheme} sesam"}), 401)
        refusal(one.get("/v1/models", headers={"Authorization": "sesame"}), 401)
