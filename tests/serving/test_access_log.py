"""The access log: an id and one line for every request, whatever becomes of it."""

import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ACCESS_LOGGER
from tests.support.running.limits import EVENT, wait_until
from tests.support.running.logs import logged_messages
from tests.support.running.server import CHAT, TEXT, chat_body, error_of, http, port_of, running

SECRET = "a prompt nobody may read"


@pytest.fixture(scope="module")
def logged(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    with running(head=head, bases=bases[:1], access_log="json", max_rows=4) as server:
        yield server


def entry_of(lines: list[str], request_id: str) -> dict[str, Any]:
    """Return the one entry of a request, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [entry for entry in map(json.loads, lines) if entry["id"] == request_id]

    wait_until(lambda: bool(found()))
    (entry,) = found()
    return entry


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_completion_is_one_line(logged: HttpServer, path: str, stream: bool) -> None:
    fields: dict[str, Any] = {"stream": stream, "alpha": 1.5, "n": 2, "max_tokens": 3}
    prompt = {"prompt": SECRET} if path == TEXT else {}
    body = chat_body(messages=[{"role": "user", "content": SECRET}], **fields, **prompt)
    if path == TEXT:
        del body["messages"]
    with logged_messages(ACCESS_LOGGER) as lines, http(logged) as web:
        response = web.post(f"{path}?key=hidden", json=body, headers={"X-Request-Id": "mine-1"})
        assert response.headers["x-request-id"] == "mine-1"
        entry = entry_of(lines, "mine-1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry.pop("time"))
    assert 0 < entry.pop("first_token_seconds") <= entry.pop("seconds")
    assert entry.pop("prompt_tokens") > 3
    assert 2 <= entry.pop("completion_tokens") <= 6
    assert entry == {
        "method": "POST",
        "path": path,
        "status": 200,
        "id": "mine-1",
        "client": "127.0.0.1",
        "bytes": len(response.content),
        "outcome": "done",
        "model": "first",
        "alpha": 1.5,
    }
    assert SECRET not in "".join(lines)
    assert "hidden" not in "".join(lines)


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 129, 'a"b', "{}", "\x7f", "é"], ids=lambda given: repr(given)[:9]
)
def test_an_id_that_is_not_sane_is_replaced(logged: HttpServer, given: str) -> None:
    with http(logged) as web:
        headers = {b"X-Request-Id": given.encode("latin-1")}
        ids = [web.get("/health", headers=headers).headers["x-request-id"] for _ in "ab"]
    assert len({*ids}) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_two_ids_are_none(logged: HttpServer) -> None:
    with http(logged) as web:
        both = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
        assert len(web.get("/health", headers=both).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/nothing", 404, "not_found_error"),
        ("PUT", CHAT, 405, "invalid_request_error"),
        ("POST", CHAT, 400, "not_json"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
    ],
)
def test_a_refused_request_says_why(
    logged: HttpServer, method: str, path: str, status: int, error: str
) -> None:
    with logged_messages(ACCESS_LOGGER) as lines, http(logged) as web:
        response = web.request(method, path)
        entry = entry_of(lines, response.headers["x-request-id"])
    error_of(response, status)
    found = (entry["status"], entry["error"], entry["outcome"], "model" in entry)
    assert found == (status, error, "refused", False)


def test_a_client_that_leaves_is_cancelled(logged: HttpServer) -> None:
    body = json.dumps(chat_body(stream=True, max_tokens=200, logit_bias={"0": -100})).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: leaves\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with logged_messages(ACCESS_LOGGER) as lines:
        with socket.create_connection(("127.0.0.1", port_of(logged)), EVENT) as connection:
            connection.sendall(head.encode() + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        entry = entry_of(lines, "leaves")
    assert entry["status"] == 200
    assert entry["outcome"] == "cancelled" or entry["completion_tokens"] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_pass_that_fails_is_found_by_its_id(
    logged: HttpServer, monkeypatch: pytest.MonkeyPatch, stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    name = f"fails-{stream}"
    monkeypatch.setattr(type(logged.worker._decoder), "add", fail)
    with (
        logged_messages(ACCESS_LOGGER) as lines,
        http(logged) as web,
        caplog.at_level(logging.ERROR),
    ):
        body = chat_body(stream=stream)
        response = web.post(CHAT, json=body, headers={"X-Request-Id": name})
        entry = entry_of(lines, name)
    text = (
        response.text.removeprefix("data: ")
        if stream and "data:" in response.text
        else response.text
    )
    assert name in text
    assert (entry["error"], entry["outcome"]) == ("failed", "failed")


def test_no_client_can_begin_a_line(head: str, bases: tuple[str, str]) -> None:
    with (
        running(head=head, bases=bases[:1], access_log="text") as server,
        logged_messages(ACCESS_LOGGER) as lines,
        http(server) as web,
    ):
        assert web.get("/a%0A%1b[31m%E2%80%A8b c%22?x=1").status_code == 404
        web.get("/health", headers={"X-Request-Id": "mine"})
        wait_until(lambda: len(lines) == 2)
    first, second = lines
    assert r' GET "/a\n\u001b[31m\u2028b c\"" 404 ' in first
    assert first.isascii()
    assert first.isprintable()
    assert re.fullmatch(
        r"\S+ GET /health 200 seconds=\S+ id=mine client=127.0.0.1 bytes=\d+ outcome=done", second
    )


def test_it_may_be_off(web: httpx2.Client, server: HttpServer) -> None:
    with logged_messages(ACCESS_LOGGER) as lines, running_off(server):
        assert web.get("/health").headers["x-request-id"]
    assert not lines


@contextmanager
def running_off(server: HttpServer) -> Iterator[None]:
    limited: Any = server.config.app
    before, limited._form = limited._form, "off"
    try:
        yield
    finally:
        limited._form = before
