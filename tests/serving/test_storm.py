"""64 clients at once, valid, invalid and broken: all get a response, nothing is left behind."""

import asyncio
import gc
import json
import random
from collections import Counter
from typing import Any, Final

import psutil
import pytest

from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.limits import PROCESS, wait_until
from tests.support.running.server import CHAT, TEXT, chat_body, http, port_of, running

CLIENTS: Final = 64
EACH: Final = 4

Kind = tuple[str, bytes, set[int] | None]
"""Path, body and the expected statuses; None for a client that disconnects early."""


def kinds() -> list[Kind]:
    def chatted(**changes: Any) -> bytes:
        return json.dumps(chat_body(**changes)).encode()

    good = {200, 429}
    return [
        (CHAT, chatted(alpha=3), good),
        (CHAT, chatted(stream=True, max_tokens=20), good),
        (CHAT, chatted(logprobs=True, top_logprobs=5, n=3, temperature=1), good),
        (CHAT, chatted(model="second", max_tokens=4), good),
        (TEXT, b'{"prompt": ["Hi", "Ho"], "stream": true, "max_tokens": 9}', good),
        (CHAT, chatted(stream=True, max_tokens=200), None),
        (CHAT, chatted(max_tokens=200), None),
        (CHAT, b"{", {400}),
        (CHAT, b"[" * 100_000, {400}),
        (CHAT, chatted(temperature="hot"), {400}),
        (CHAT, chatted(model="third"), {404}),
        (CHAT, chatted(n=99), {400}),
        (TEXT, b'{"prompt": ""}', {400, 429}),
        (TEXT, json.dumps({"prompt": "word " * 3000}).encode(), {400, 429}),
        (TEXT, json.dumps({"prompt": "a" * 2_000_000}).encode(), {413}),
        ("/v1/nothing", b"{}", {404}),
    ]


KINDS: Final = kinds()


async def exchange(port: int, kind: Kind) -> int | None:
    """Send one request over a connection of its own; return the status."""
    path, body, expected = kind
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        if expected is None:
            await asyncio.sleep(random.random() * 0.2)
            return None
        line = await reader.readline()
        await reader.read()
        return int(line.split()[1])
    finally:
        writer.close()


async def broken(port: int) -> None:
    """Send something other than HTTP, or half a request, and disconnect."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(random.choice((b"\x00\x01\x02\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHo")))
    await writer.drain()
    writer.close()


async def storm(port: int, seed: int) -> Counter[int | None]:
    random.seed(seed)
    statuses: Counter[int | None] = Counter()

    async def client(number: int) -> None:
        for turn in range(EACH):
            kind = KINDS[(number * EACH + turn) % len(KINDS)]
            status = await exchange(port, kind)
            assert kind[2] is None or status in kind[2], (kind[:2], status)
            statuses[status] += 1
            if turn == 1:
                await broken(port)

    await asyncio.wait_for(asyncio.gather(*map(client, range(CLIENTS))), PROCESS)
    return statuses


def settled(server: HttpServer) -> tuple[int, int, int]:
    """Wait until the server is idle; return threads, descriptors and bytes of the process."""
    wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
    wait_until(lambda: not server.worker.rows and not len(server.worker.queue))
    gc.collect()
    process = psutil.Process()
    return process.num_threads(), process.num_fds(), process.memory_info().rss


def test_a_storm_leaves_nothing_behind(
    head: str, bases: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    with running(head=head, bases=bases, max_rows=8, max_queue=24) as server:
        port = port_of(server)
        with http(server) as web:
            want = web.post(CHAT, json=chat_body(model="first")).json()
        # The first storm creates what is kept.
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
            after = web.post(CHAT, json=chat_body(model="first")).json()
            assert after["choices"] == want["choices"]
            assert web.get("/health").json()["status"] == "ok"
            assert 'endpoint="other"' in web.get("/metrics").text
    assert "Traceback" not in "".join(capfd.readouterr())
