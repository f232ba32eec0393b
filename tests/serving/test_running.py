"""Queue, disconnects, failures and the end: nothing waits for ever, nothing is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any, cast

import httpx2
import openai
import pytest

from mav.pipeline.decoding.continuous_batching import ContinuousBatchDecoder
from mav.pipeline.serving.http_server import HttpServer
from mav.pipeline.serving.prompts import Choice
from mav.pipeline.serving.worker import Worker
from tests.support.limits import NEVER, PROCESS, wait_until
from tests.support.server import chat_body, client, http, running

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).parents[2]
LONG = {"max_tokens": 200, "alpha": 0, "stream": True}


@pytest.fixture
def small(head: str, bases: tuple[str, str]) -> Iterator[HttpServer]:
    """A server with room for two answers and two that wait."""
    with running(head=head, bases=bases[:1], max_rows=2, max_queue=2) as server:
        yield server


class Gate:
    """Stops the decoding while it is shut, except to let answers begin or be given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: Worker) -> None:
        self.open = threading.Event()
        self.fail: Exception | None = None
        step = ContinuousBatchDecoder.step

        def passes(decoder: ContinuousBatchDecoder) -> bool:
            begins = len(worker.queue) > 0 and worker.rows < worker.max_rows
            given_up = any(cast("Choice", row.request).job.cancelled for row in decoder.rows)
            return self.open.is_set() or self.fail is not None or begins or given_up

        def gated(decoder: ContinuousBatchDecoder) -> Any:
            wait_until(lambda: passes(decoder))
            if self.fail is not None:
                error, self.fail = self.fail, None
                raise error
            return step(decoder)

        monkeypatch.setattr(ContinuousBatchDecoder, "step", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, small: HttpServer) -> Iterator[Gate]:
    found = Gate(monkeypatch, small.worker)
    yield found
    found.open.set()


@contextlib.contextmanager
def held(web: httpx2.Client, count: int) -> Iterator[list[httpx2.Response]]:
    """Streams whose first token has come."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(web.stream("POST", CHAT, json=chat_body(**LONG)))
            for _ in range(count)
        ]


def test_more_than_the_queue_holds_are_told_to_come_again(small: HttpServer, gate: Gate) -> None:
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
        assert [one.result().status_code for one in waiting] == [200, 200]
        for stream in streams:
            assert stream.read().endswith(b"data: [DONE]\n\n")


def test_what_others_prompts_take_is_part_of_the_time_between_tokens(
    small: HttpServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = ContinuousBatchDecoder.add

    def slow(decoder: ContinuousBatchDecoder, requests: Any) -> Any:
        if decoder.rows:
            sleep(0.4)
        return add(decoder, requests)

    monkeypatch.setattr(ContinuousBatchDecoder, "add", slow)
    with http(small) as web, held(web, 1) as (stream,), ThreadPoolExecutor(1) as pool:
        wait_until(lambda: small.worker.rows == 1)
        other = pool.submit(web.post, CHAT, json=chat_body(max_tokens=2))
        wait_until(lambda: small.worker.rows == 2)
        gate.open.set()
        stream.read()
        other.result()
        told = dict(line.rsplit(" ", 1) for line in web.get("/metrics").text.splitlines())
    tokens = float(told["mav_generated_tokens_total"])
    counted = float(told["mav_token_seconds_count"])
    assert counted == tokens - 2, "not one for each token but the first of both answers"
    assert counted - float(told['mav_token_seconds_bucket{le="0.3"}']) >= 1


def asking(server: HttpServer, changes: dict[str, Any]) -> socket.socket:
    """Send a request over a connection of its own."""
    content = json.dumps(chat_body(**changes)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_row(small: HttpServer, gate: Gate, stream: bool) -> None:
    with asking(small, {**LONG, "stream": stream}):
        wait_until(lambda: small.worker.rows == 1)
    wait_until(lambda: small.worker.rows == 0)
    with http(small) as web:
        told = web.get("/metrics").text
    generated = float(told.partition("\nmav_generated_tokens_total ")[2].partition("\n")[0])
    assert generated < 150, "the row went on to its end for nobody"


def test_a_client_that_goes_while_it_waits_leaves_the_queue(small: HttpServer, gate: Gate) -> None:
    with http(small) as web, held(web, 2):
        with asking(small, {}):
            wait_until(lambda: len(small.worker.queue) == 1)
        wait_until(lambda: len(small.worker.queue) == 0)
        gate.open.set()


def test_a_pass_that_fails_ends_its_answers_and_no_others(small: HttpServer, gate: Gate) -> None:
    with http(small) as web, client(small) as ai:
        with held(web, 1) as (stream,), ThreadPoolExecutor(1) as pool:
            whole = pool.submit(web.post, CHAT, json=chat_body())
            wait_until(lambda: small.worker.rows == 2)
            gate.fail = RuntimeError("secret path /root: out of memory")
            text = stream.read().decode()
            answer = whole.result()
        assert answer.status_code == 500
        assert "RuntimeError" in answer.json()["error"]["message"]
        assert "secret" not in answer.text + text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert last["error"]["type"] == "server_error"
        gate.open.set()
        gate.fail = RuntimeError("again")
        parts = ai.chat.completions.create(
            model="first", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="failed"):
            list(parts)
        want = web.post(CHAT, json=chat_body())
        assert want.status_code == 200
        assert "mav_failed_passes_total 2.0" in web.get("/metrics").text
        assert web.get("/health").status_code == 200


def test_a_prompt_that_cannot_be_read_fails_alone(
    small: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no more memory")

    with http(small) as web, monkeypatch.context() as broken:
        broken.setattr(ContinuousBatchDecoder, "add", fail)
        assert web.post(CHAT, json=chat_body()).status_code == 500
    with http(small) as web:
        assert web.post(CHAT, json=chat_body()).status_code == 200


def test_a_thread_that_dies_is_told_of(
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


def test_at_the_end_answers_that_take_too_long_are_ended_and_told(
    head: str, bases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mav.pipeline.serving import http_server

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


def test_a_signal_ends_the_process_and_is_no_failure(head: str, bases: tuple[str, str]) -> None:
    code = (
        # What a shell starts in the background ignores SIGINT.
        "import logging, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from mav.pipeline.serving.options import ServeOptions;"
        "from mav.pipeline.serving.server import serve;"
        "logging.basicConfig(stream=sys.stdout); logging.getLogger('mav').setLevel('INFO');"
        "serve(ServeOptions(head=sys.argv[1], bases=(sys.argv[2],), port=0, device='cpu'))"
    )
    with contextlib.ExitStack() as stack:
        processes = {
            number: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, head, bases[0]],
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        for process in processes.values():
            stack.callback(process.kill)
        for number, process in processes.items():
            assert process.stdout is not None
            assert any("http://127.0.0.1:" in line for line in process.stdout)
            process.send_signal(number)
            rest, errors = process.communicate(timeout=PROCESS)
            assert (process.returncode, rest) == (0, "")
            assert "Traceback" not in errors


def test_without_its_packages_the_server_says_which_to_install(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from mav.cache_schema.errors import UsageError\n"
        "from mav.pipeline.serving.options import ServeOptions\n"
        "from mav.pipeline.serving.server import serve\n"
        "try: serve(ServeOptions(head='x'))\n"
        "except UsageError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "pip install 'mav-align[serve]'" in found.stdout, found.stderr
