"""Queue, disconnects, failures and shutdown: no client waits for ever, nothing is left behind."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx2
import openai
import pytest

from mav.pipeline.decoding import continuous_batching
from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.serving import http_server
from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.gate import Gate
from tests.support.running.limits import NEVER, wait_until
from tests.support.running.server import CHAT, chat_body, client, http, port_of, running

LONG: Final[dict[str, Any]] = {"max_tokens": 200, "alpha": 0, "stream": True}


@pytest.fixture
def small(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    """A server with room for two choices and two waiting requests."""
    with running(head=head, bases=bases[:1], max_rows=2, max_queue=2) as server:
        yield server


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, small: HttpServer) -> Iterator[Gate]:
    closed = Gate(monkeypatch, small.worker)
    yield closed
    closed.open.set()


@contextlib.contextmanager
def held(web: httpx2.Client, count: int) -> Iterator[list[httpx2.Response]]:
    """Open streams, each of a choice that has its first token."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(web.stream("POST", CHAT, json=chat_body(**LONG)))
            for _ in range(count)
        ]


def test_a_full_queue_refuses_requests(small: HttpServer, gate: Gate) -> None:
    worker = small.worker
    with http(small) as web, held(web, 2) as streams, ThreadPoolExecutor(2) as pool:
        wait_until(lambda: worker.rows == 2)
        waiting = [pool.submit(web.post, CHAT, json=chat_body()) for _ in range(2)]
        wait_until(lambda: len(worker.queue) == 2)
        refused = web.post(CHAT, json=chat_body())
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert web.get("/health").json()["queue"] == 2
        assert "mav_queue_length 2.0" in web.get("/metrics").text
        gate.open.set()
        assert [response.result().status_code for response in waiting] == [200, 200]
        for stream in streams:
            assert stream.read().endswith(b"data: [DONE]\n\n")


def test_the_prefill_of_others_counts_in_the_time_between_tokens(
    small: HttpServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, passed = ContinuousBatchDecoder.add, 0.0

    def slow(decoder: ContinuousBatchDecoder, requests: Any) -> Any:
        nonlocal passed
        passed += 0.4 if decoder.sequences else 0.0
        return add(decoder, requests)

    clock: Any = vars(continuous_batching)["perf_counter"]
    monkeypatch.setattr(continuous_batching, "perf_counter", lambda: clock() + passed)
    monkeypatch.setattr(ContinuousBatchDecoder, "add", slow)
    with http(small) as web, held(web, 1) as (stream,), ThreadPoolExecutor(1) as pool:
        wait_until(lambda: small.worker.rows == 1)
        other = pool.submit(web.post, CHAT, json=chat_body(max_tokens=2))
        wait_until(lambda: small.worker.rows == 2)
        gate.open.set()
        stream.read()
        other.result()
        metrics = dict(line.rsplit(" ", 1) for line in web.get("/metrics").text.splitlines())
    tokens = float(metrics["mav_generated_tokens_total"])
    counted = float(metrics["mav_token_seconds_count"])
    assert counted == tokens - 2, "not one for each token but the first of both choices"
    assert counted - float(metrics['mav_token_seconds_bucket{le="0.3"}']) >= 1


def request_sent(server: HttpServer, changes: dict[str, Any]) -> socket.socket:
    """Send a request over a connection of its own."""
    content = json.dumps(chat_body(**changes)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port_of(server)))
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_row(
    small: HttpServer, gate: Gate, stream: bool
) -> None:
    with request_sent(small, {**LONG, "stream": stream}):
        wait_until(lambda: small.worker.rows == 1)
    wait_until(lambda: small.worker.rows == 0)
    with http(small) as web:
        metrics = web.get("/metrics").text
    generated = float(metrics.partition("\nmav_generated_tokens_total ")[2].partition("\n")[0])
    assert generated < 150, "the row was decoded to its end"


def test_a_client_that_disconnects_leaves_the_queue(small: HttpServer, gate: Gate) -> None:
    with http(small) as web, held(web, 2):
        with request_sent(small, {}):
            wait_until(lambda: len(small.worker.queue) == 1)
        wait_until(lambda: len(small.worker.queue) == 0)
        gate.open.set()


def test_a_failed_pass_ends_its_choices_and_no_others(small: HttpServer, gate: Gate) -> None:
    with http(small) as web, client(small) as ai:
        with held(web, 1) as (stream,), ThreadPoolExecutor(1) as pool:
            whole = pool.submit(web.post, CHAT, json=chat_body())
            wait_until(lambda: small.worker.rows == 2)
            gate.fail = RuntimeError("secret path /root: out of memory")
            text = stream.read().decode()
            response = whole.result()
        assert response.status_code == 500
        assert "RuntimeError" in response.json()["error"]["message"]
        assert "secret" not in response.text + text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert last["error"]["type"] == "server_error"
        gate.open.set()
        gate.fail = RuntimeError("again")
        parts = ai.chat.completions.create(
            model="first", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="failed"):
            list(parts)
        assert web.post(CHAT, json=chat_body()).status_code == 200
        assert "mav_failed_passes_total 2.0" in web.get("/metrics").text
        assert web.get("/health").status_code == 200


def test_a_failed_prefill_fails_alone(small: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no more memory")

    with http(small) as web, monkeypatch.context() as broken:
        broken.setattr(ContinuousBatchDecoder, "add", fail)
        assert web.post(CHAT, json=chat_body()).status_code == 500
    with http(small) as web:
        assert web.post(CHAT, json=chat_body()).status_code == 200


def test_a_worker_that_dies_is_reported(
    head: str, bases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(head=head, bases=bases[:1]) as server, http(server) as web:
        assert web.get("/health").json() == {
            "status": "ok",
            "base": "first",
            "head": "head",
            "queue": 0,
            "rows": 0,
        }
        monkeypatch.setattr(server.worker, "_admit", lambda: 1 / 0)
        assert web.post(CHAT, json=chat_body()).status_code in (500, 503)
        wait_until(lambda: not server.worker.alive)
        assert web.get("/health").status_code == 503
        assert web.post(CHAT, json=chat_body()).status_code == 503


def test_at_shutdown_slow_completions_are_ended_with_an_error(
    head: str, bases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GRACE_SECONDS", 0.2)
    before = set(threading.enumerate())
    step = ContinuousBatchDecoder.step
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(head=head, bases=bases[:1], max_rows=1))
        server.config.timeout_graceful_shutdown = round(NEVER)

        def slow(decoder: ContinuousBatchDecoder) -> Any:
            wait_until(lambda: server.worker.queue.overdue)
            return step(decoder)

        monkeypatch.setattr(ContinuousBatchDecoder, "step", slow)
        web = stack.enter_context(http(server))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        (stream,) = stack.enter_context(held(web, 1))
        waiting = pool.submit(web.post, CHAT, json=chat_body())
        wait_until(lambda: len(server.worker.queue) == 1)
        server.should_exit = True
        assert '"code":"shutting_down"' in stream.read().decode()
        assert waiting.result().status_code == 503
    wait_until(lambda: set(threading.enumerate()) <= before)
