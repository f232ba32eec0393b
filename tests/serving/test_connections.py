"""Clients that do nothing: who sends no request, or reads no answer, is let go."""

import json
import socket
from collections.abc import Iterator

import h11
import psutil
import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.serving import http_server, protocol
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.server import load_server
from tests.support.limits import EVENT, NEVER, wait_until
from tests.support.server import chat_body, forward, http, open_connections, running
from tests.support.tiny import save_base, tiny_base


@pytest.fixture
def server(
    head: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HttpServer]:
    """A server of a base that can talk for long."""
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 20)
    base = tiny_base(max_position_embeddings=4096)
    folder = save_base(base, tmp_path_factory.mktemp("long") / "base")
    with running(head=head, bases=(str(folder),), max_rows=8) as one:
        yield one


def connected(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))


def open_sockets() -> int:
    return len(psutil.Process().net_connections("tcp"))


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    ],
)
def test_who_sends_no_whole_request_is_let_go(server: HttpServer, begun: bytes) -> None:
    answered = begun.count(b"\r\n\r\n")
    # What uvicorn itself does where no byte of a further request has come is another thing.
    server.config.timeout_keep_alive = 3 * round(NEVER)
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
    """What the server has of requests whose heads have not come whole."""
    idle = [one.conn for one in open_connections(server) if one.conn.their_state is h11.IDLE]
    return [conn.trailing_data[0] for conn in idle]


def test_a_further_request_may_take_as_long_as_the_first(server: HttpServer) -> None:
    assert server.config.timeout_keep_alive == protocol.HEADER_SECONDS


def test_who_reads_nothing_is_let_go(server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(
        chat_body(stream=True, n=8, max_tokens=1000, logprobs=True, top_logprobs=20, alpha=0)
    ).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    with client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        wait_until(lambda: server.worker.rows)

        def let_go() -> bool:
            # More than once: the system's own buffers may still take some when the server waits.
            if any(one.flow.write_paused for one in open_connections(server)):
                forward(server)
            return not open_connections(server)

        wait_until(let_go)
        wait_until(lambda: not server.worker.rows)
    assert [record for record in caplog.records if record.exc_info] == []
    with http(server) as web:
        assert web.get("/health").json()["status"] == "ok"


def test_a_crowd_is_told_so(server: HttpServer) -> None:
    crowd = [connected(server) for _ in range(30)]
    try:
        wait_until(lambda: len(open_connections(server)) == 30)
        with http(server) as web:
            answer = web.get("/health")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "overloaded"
        # None of them sends anything, so they do not stay.
        forward(server)
        wait_until(lambda: not open_connections(server))
        with http(server) as web:
            assert web.get("/health").status_code == 200
    finally:
        for one in crowd:
            one.close()


def test_an_address_that_is_taken_is_told_before_anything_is_loaded(server: HttpServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be listened on"):
        load_server(ServeOptions(head="nowhere", port=port))
    before = open_sockets()
    with pytest.raises(Exception, match="nowhere"):
        load_server(ServeOptions(head="/nowhere", bases=("/nowhere",), port=0))
    assert open_sockets() == before, "the address is still taken"
