"""A server of tiny bases in a thread, and ways to talk to it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import httpx2
import openai

from pipeline.serving.http_server import HttpServer
from pipeline.serving.options import ServeOptions
from pipeline.serving.run import load_server

PATIENCE = 30.0
"""Seconds after which a test counts as hung."""


@contextlib.contextmanager
def running(**options: Any) -> Iterator[HttpServer]:
    """Serve while the context is open; afterwards, nothing of the server may be left."""
    said: list[str] = []
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "port": 0, **options}
    server = load_server(ServeOptions(**settings), say=said.append)
    thread = threading.Thread(target=server.run, name="test-server")
    thread.start()
    try:
        wait_for(lambda: said and server.url in said[-1])
        yield server
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert server.worker.join(0.0)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something holds; it must within `PATIENCE`."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, "it did not come to hold"
        sleep(0.01)


def client(server: HttpServer, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def http(server: HttpServer, **options: Any) -> httpx2.Client:
    """A plain client."""
    return httpx2.Client(base_url=server.url, timeout=PATIENCE, **options)


def chat_body(**changes: Any) -> dict[str, Any]:
    """A small, valid request; a change to None leaves a field out."""
    body = {
        "messages": [{"role": "user", "content": "Hi there"}],
        "max_tokens": 8,
        "temperature": 0,
        **changes,
    }
    return {name: value for name, value in body.items() if value is not None}
