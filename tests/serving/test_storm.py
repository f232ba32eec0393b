"""64 clients at once, many of them up to no good: all are answered, nothing is left behind."""

import asyncio
import gc
import json
import random
from collections import Counter
from typing import Any

import psutil
import pytest

from mav.pipeline.serving.http_server import HttpServer
from tests.support.limits import PROCESS, wait_until
from tests.support.server import chat_body, http, running

CLIENTS, EACH = 64, 4

Kind = tuple[str, bytes, set[int] | None]
"""Path, body and the statuses that are right; None for a client that goes without an answer."""


def kinds() -> list[Kind]:
    chat, complete = "/v1/chat/completions", "/v1/completions"

    def chatted(**changes: Any) -> bytes:
        return json.dumps(chat_body(**changes)).encode()

    good = {200, 429}
    return [
        (chat, chatted(alpha=3), good),
        (chat, chatted(stream=True, max_tokens=20), good),
        (chat, chatted(logprobs=True, top_logprobs=5, n=3, temperature=1), good),
        (chat, chatted(model="second", max_tokens=4), good),
        (complete, b'{"prompt": ["Hi", "Ho"], "stream": true, "max_tokens": 9}', good),
        (chat, chatted(stream=True, max_tokens=200), None),
        (chat, chatted(max_tokens=200), None),
        (chat, b"{", {400}),
        (chat, b"[" * 100_000, {400}),
        (chat, chatted(temperature="hot"), {400}),
        (chat, chatted(model="third"), {404}),
        (chat, chatted(n=99), {400}),
        (complete, b'{"prompt": ""}', {400, 429}),
        (complete, json.dumps({"prompt": "word " * 3000}).encode(), {400, 429}),
        (complete, json.dumps({"prompt": "a" * 2_000_000}).encode(), {413}),
        ("/v1/nothing", b"{}", {404}),
    ]


async def exchange(port: int, kind: Kind) -> int | None:
    """Send one request over a connection of its own; return the status."""
    path, body, statuses = kind
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        if statuses is None:
            await asyncio.sleep(random.random() * 0.2)
            return None
        line = await reader.readline()
        await reader.read()
        return int(line.split()[1])
    finally:
        writer.close()


async def broken(port: int) -> None:
    """Send what is no HTTP, or half a request, and go."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(random.choice((b"\x00\x01\x02\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHo")))
    await writer.drain()
    writer.close()


async def storm(port: int, seed: int) -> Counter[int | None]:
    random.seed(seed)
    found: Counter[int | None] = Counter()

    async def one(number: int) -> None:
        for turn in range(EACH):
            kind = kinds()[(number * EACH + turn) % len(kinds())]
            status = await exchange(port, kind)
            assert kind[2] is None or status in kind[2], (kind[:2], status)
            found[status] += 1
            if turn == 1:
                await broken(port)

    await asyncio.wait_for(asyncio.gather(*map(one, range(CLIENTS))), PROCESS)
    return found


def settled(server: HttpServer) -> tuple[int, int, int]:
    """Wait until nothing is going on; return threads, descriptors and bytes of the process."""
    wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
    wait_until(lambda: not server.worker.rows and not len(server.worker.queue))
    gc.collect()
    process = psutil.Process()
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_a_storm_leaves_nothing_behind(
    head: str, bases: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with running(head=head, bases=bases, max_rows=8, max_queue=24) as server:
        port = int(server.url.rpartition(":")[2])
        with http(server) as web:
            want = web.post("/v1/chat/completions", json=chat_body(model="first")).json()
        # The first storm warms up what is made once and kept.
        first = asyncio.run(storm(port, 0))
        threads, descriptors, size = settled(server)
        assert {200, 400, 404, 413, None} <= set(first)
        assert first.total() == CLIENTS * EACH
        for seed in (1, 2):
            asyncio.run(storm(port, seed))
            again = settled(server)
            assert again[0] <= threads
            assert again[1] <= descriptors
            assert again[2] - size < 64 << 20
        with http(server) as web:
            after = web.post("/v1/chat/completions", json=chat_body(model="first")).json()
            assert after["choices"] == want["choices"]
            assert web.get("/health").json()["status"] == "ok"
            assert 'endpoint="other"' in web.get("/metrics").text
    assert "Traceback" not in "".join(capfd.readouterr())
