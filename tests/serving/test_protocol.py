"""Clients that send no request or read no response are disconnected."""

import json
import socket
from collections.abc import Iterator

import h11
import pytest

from mav.pipeline.serving import http_server
from mav.pipeline.serving.http import protocol
from mav.pipeline.serving.http_server import HttpServer
from tests.support.models.tiny import save_base, tiny_base
from tests.support.running.limits import EVENT, NEVER, wait_until
from tests.support.running.server import (
    chat_body,
    error_of,
    forward,
    http,
    open_connections,
    port_of,
    running,
)


@pytest.fixture(scope="module")
def server(head: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """A server of a base with a long context, whose clock tests may move."""
    base = save_base(
        tiny_base(max_position_embeddings=4096), tmp_path_factory.mktemp("long") / "base"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_server, "_MAX_CONNECTIONS", 20)
        with running(head=head, bases=(str(base),), max_rows=8) as long_server:
            yield long_server


def connected(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)))


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    ],
)
def test_a_client_that_sends_no_whole_request_is_disconnected(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    answered = begun.count(b"\r\n\r\n")
    # uvicorn has its own deadline for the first byte of a further request.
    monkeypatch.setattr(server.config, "timeout_keep_alive", 3 * round(NEVER))
    with connected(server) as client:
        client.settimeout(EVENT)
        client.sendall(begun)
        received = b""
        while received.count(b"200 OK") < answered:
            received += client.recv(1 << 16)
        waiting = begun.rpartition(b"\r\n\r\n")[2]
        wait_until(lambda: unread(server) == [waiting])
        forward(server)
        try:
            while part := client.recv(1 << 16):
                received += part
        except ConnectionResetError:
            pass
    assert received.count(b"HTTP/1.1") == answered


def unread(server: HttpServer) -> list[bytes]:
    """What the server has received of incomplete heads."""
    parsers = [opened.conn for opened in open_connections(server)]
    return [p.trailing_data[0] for p in parsers if p.their_state is h11.IDLE]


def test_a_further_request_may_take_as_long_as_the_first(server: HttpServer) -> None:
    assert server.config.timeout_keep_alive == protocol.HEADER_SECONDS


def test_a_client_that_reads_nothing_is_disconnected(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(
        chat_body(stream=True, n=8, max_tokens=1000, logprobs=True, top_logprobs=20, alpha=0)
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", port_of(server)))
    with client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        wait_until(lambda: server.worker.rows)

        def disconnected() -> bool:
            # More than once: the system's own buffers may still take some when the server waits.
            if any(opened.flow.write_paused for opened in open_connections(server)):
                forward(server)
            return not open_connections(server)

        wait_until(disconnected)
        wait_until(lambda: not server.worker.rows)
    assert [record for record in caplog.records if record.exc_info] == []
    with http(server) as web:
        assert web.get("/health").json()["status"] == "ok"


def test_too_many_connections_are_refused(server: HttpServer) -> None:
    crowd = [connected(server) for _ in range(30)]
    try:
        wait_until(lambda: len(open_connections(server)) == 30)
        with http(server) as web:
            assert error_of(web.get("/health"), 503)["code"] == "overloaded"
        # None of them sends anything, so all are disconnected.
        forward(server)
        wait_until(lambda: not open_connections(server))
        with http(server) as web:
            assert web.get("/health").status_code == 200
    finally:
        for connection in crowd:
            connection.close()
