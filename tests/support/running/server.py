"""A server of tiny bases in a thread, and its clients."""

import contextlib
import threading
from asyncio import BaseEventLoop
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, cast

import httpx2
import openai
import pytest

from mav.pipeline.serving import http_server
from mav.pipeline.serving.http import middleware, protocol
from mav.pipeline.serving.http.protocol import DeadlineProtocol
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.server import load_server
from tests.support.running.limits import EVENT, NEVER, wait_until
from tests.support.running.logs import logged_messages

CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"


@contextlib.contextmanager
def running(**options: Any) -> Iterator[HttpServer]:
    """Serve while the context is open; afterwards its threads must have ended.

    Its deadlines for clients never pass, as machines may be slow.
    """
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "port": 0, **options}
    with pytest.MonkeyPatch.context() as patch, logged_messages() as logged:
        for module, name in (
            (protocol, "HEADER_SECONDS"),
            (protocol, "SEND_SECONDS"),
            (http_server, "HEADER_SECONDS"),
            (middleware, "BODY_SECONDS"),
            (middleware, "_DRAIN_SECONDS"),
        ):
            patch.setattr(module, name, NEVER)
        server = load_server(ServeOptions(**settings))
        thread = threading.Thread(target=server.run, name="test-server")
        thread.start()
        try:
            wait_until(lambda: logged and server.url in logged[-1])
            yield server
        finally:
            server.should_exit = True
            thread.join(EVENT)
            assert not thread.is_alive()
            assert server.worker.join(EVENT)


def open_connections(server: HttpServer) -> list[DeadlineProtocol]:
    """Return the connections of a server."""
    return cast("list[DeadlineProtocol]", list(server.server_state.connections))


def forward(server: HttpServer) -> None:
    """Move the clock of the open connections, so that all their deadlines pass."""
    for loop in {cast("BaseEventLoop", opened.loop) for opened in open_connections(server)}:
        passed = loop.time() - BaseEventLoop.time(loop) + NEVER
        loop.time = partial(later, loop, passed)  # type: ignore[method-assign]


def later(loop: BaseEventLoop, passed: float) -> float:
    """The time of a loop, plus `passed` seconds."""
    return BaseEventLoop.time(loop) + passed


def port_of(server: HttpServer) -> int:
    """Return the port of a server."""
    return int(server.url.rpartition(":")[2])


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Return the error in a response, which must have this status and OpenAI's form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    of_server = {"request_id"} if status >= 500 else set()
    assert set(error) == {"message", "type", "param", "code"} | of_server
    assert error["message"]
    return error


def client(server: HttpServer, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=EVENT)


def http(server: HttpServer, **options: Any) -> httpx2.Client:
    """A plain client."""
    return httpx2.Client(base_url=server.url, timeout=EVENT, **options)


def chat_body(**changes: Any) -> dict[str, Any]:
    """A small, valid request; a change to None leaves a field out."""
    body = {
        "messages": [{"role": "user", "content": "Hi there"}],
        "max_tokens": 8,
        "temperature": 0,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}
