"""`mav serve --engine vllm` under OpenAI's client, in front of a tiny base."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engine.jobs import ENVIRONMENT, Run, free_port
from tests.support.running.limits import EVENT, PROCESS, wait_until

pytestmark = pytest.mark.filterwarnings("default")
PROMPT: Final = [*range(20, 60)]
"""Token ids, as the two servers cut texts alike but tests of that are elsewhere."""
NEW: Final = 8
ALPHAS: Final = (0, 1, 1.5, "0:2,4:0", -1, None)
OPTIONS: Final = (
    *("--max-model-len", "256", "--max-num-seqs", "4", "--block-size", "32", "--enforce-eager"),
    *("--kv-cache-memory-bytes", str(64 << 20), "--max-logprobs", "-1"),
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that runs."""

    url: str

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=EVENT) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=EVENT) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def served(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    log = folder / "log"
    words = ["serve", "--engine", "vllm", "--head", world / "mlp", "--base-model", world / "base"]
    words += ["--port", port, "--dtype", "float32", "--alpha", "0.5", "--", *OPTIONS]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", "mav", *map(str, words)],
            env={"VLLM_CACHE_ROOT": str(folder / "cache"), **os.environ, **ENVIRONMENT},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    server = Served(url=f"http://127.0.0.1:{port}")
    try:
        _wait(server, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(EVENT)


def _wait(server: Served, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        try:
            return server.get("/health")[0] == 200
        except OSError:
            return False

    wait_until(lambda: process.poll() is not None or answers(), PROCESS)
    assert process.poll() is None, log.read_text(errors="replace")[-6000:]


def test_many_at_once_have_the_alphas_they_asked_for(served: Served, run: Run, world: Path) -> None:
    from openai import AsyncOpenAI

    async def ask(client: AsyncOpenAI, alpha: Any, at: str) -> Any:
        extra = {} if alpha is None else {"alpha": alpha}
        answer = await client.completions.create(
            model="base",
            prompt=PROMPT,
            max_tokens=NEW,
            temperature=0,
            logprobs=1,
            extra_body={"return_token_ids": True}
            | (extra if at == "plain" else {"vllm_xargs": extra} if extra else {}),
        )
        (choice,) = answer.choices
        return choice.token_ids, choice.logprobs.token_logprobs  # type: ignore[attr-defined, union-attr]

    async def ask_all() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            return await asyncio.gather(
                *(ask(client, alpha, at) for at in ("plain", "extra") for alpha in ALPHAS)
            )

    got = asyncio.run(ask_all())
    asked = [
        {"prompt": PROMPT, "alpha": 0.5 if alpha is None else alpha, "max_tokens": NEW}
        for alpha in ALPHAS
    ]
    job = {"heads": str(world / "mlp"), "base": str(world / "base"), "requests": asked}
    expected = run("engine.reference", job) * 2
    for (tokens, logprobs), reference in zip(got, expected, strict=True):
        assert tokens == reference["tokens"]
        for token, ours, all_of_them in zip(tokens, logprobs, reference["logprobs"], strict=True):
            assert abs(ours - all_of_them[token]) < 1e-4


@pytest.mark.parametrize("alpha", [True, "x:y", [1, 2], 1e39, "nan", {"a": 1}, 101])
@pytest.mark.parametrize("plain", [True, False])
def test_what_is_not_a_strength_is_refused_and_the_engine_lives(
    served: Served, alpha: Any, plain: bool
) -> None:
    given = {"alpha": alpha} if plain else {"vllm_xargs": {"alpha": alpha}}
    body = {"model": "base", "prompt": PROMPT, "max_tokens": 2, **given}
    status, answer = served.post("/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"].startswith("alpha: got ")
    assert served.post("/v1/completions", {**body, "alpha": 1, "vllm_xargs": {}})[0] == 200


def test_chats_stream_as_transcripts(served: Served) -> None:
    from openai import OpenAI

    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": "Name a tree."}],
            max_tokens=4,
            temperature=0,
            stream=True,
            logprobs=True,
            stream_options={"include_usage": True},
            extra_body={"alpha": 1, "seed": 0},
        )
        *_, last = stream
    assert last.usage is not None
    assert last.usage.completion_tokens <= 4


def test_the_page_and_what_it_needs(served: Served) -> None:
    for path in ("/", "/page.js", "/page.css"):
        assert served.get(path)[0] == 200
    listed = json.loads(served.get("/v1/models")[1])
    assert listed["alpha"] == 0.5
    assert [model["in_use"] for model in listed["data"]] == [True]


def test_beam_search_is_refused(served: Served) -> None:
    body = {"model": "base", "prompt": PROMPT, "max_tokens": 2, "n": 2, "use_beam_search": True}
    assert served.post("/v1/completions", body)[0] == 400
