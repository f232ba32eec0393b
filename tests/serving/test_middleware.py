"""Access control, limits of bodies, and HEAD."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from mav.pipeline.serving.http import middleware
from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.limits import EVENT
from tests.support.running.server import CHAT, chat_body, client, error_of, http, port_of, running


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/health", "/metrics", "/v1/models", "/v1/models/first"]
)
def test_head_is_get_without_a_body(web: httpx2.Client, path: str) -> None:
    head, get = web.head(path), web.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_is_refused_where_get_is(web: httpx2.Client) -> None:
    assert web.head(CHAT).status_code == 405
    assert web.head("/v1/nothing").status_code == 404
    assert web.head("/health", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(web: httpx2.Client, declared: bool) -> None:
    content = json.dumps(chat_body(user="a" * 3_000_000)).encode()
    sent: Any = content if declared else iter([content[:1_500_000], content[1_500_000:]])
    response = web.post(CHAT, content=sent, headers={"Content-Type": "application/json"})
    assert error_of(response, 413)["code"] == "body_too_large"


def test_an_endless_body_is_not_read_to_its_end(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "_DRAIN_SECONDS", 0.1)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port_of(server)), EVENT) as connection:
        connection.sendall(head.encode() + b"{" * 1000)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_is_never_sent_times_out(
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


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_is_refused(web: httpx2.Client, host: str) -> None:
    assert error_of(web.get("/v1/models", headers={"Host": host}), 403)["code"] == "foreign_host"


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "127.1.2.3", "[::1]:8000", "[::1]", "LOCALHOST"]
)
def test_names_of_this_machine_are_accepted(web: httpx2.Client, host: str) -> None:
    assert web.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.fixture(scope="module")
def guarded(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    with running(head=head, bases=bases[:1], api_key="open sesame") as server:
        yield server


def test_an_api_key_is_required(guarded: HttpServer) -> None:
    with http(guarded) as web:
        for path in ("/v1/models", "/metrics"):
            for headers in ({}, {"Authorization": "Bearer open"}, {"Authorization": "open sesame"}):
                error = error_of(web.get(path, headers=headers), 401)
                assert error["type"] == "authentication_error"
            good = {"Authorization": "Bearer open sesame", "Host": "my.example"}
            assert web.get(path, headers=good).status_code == 200
        assert web.get("/").status_code == web.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError), client(guarded, key="wrong") as ai:
            ai.models.list()
        with client(guarded, key="open sesame") as ai:
            assert ai.completions.create(model="first", prompt="Hi", max_tokens=2).choices


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_case_of_the_scheme_does_not_matter(guarded: HttpServer, scheme: str) -> None:
    with http(guarded) as web:
        good = {"Authorization": f"{scheme} open sesame"}
        assert web.get("/v1/models", headers=good).is_success
        for wrong in (f"{scheme} open sesam", "open sesame", "sesame"):
            error_of(web.get("/v1/models", headers={"Authorization": wrong}), 401)
