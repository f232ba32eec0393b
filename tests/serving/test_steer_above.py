"""Requests with a limit of their own: what is answered, and how much of it was steered."""

from collections.abc import Iterator

import httpx2
import openai
import pytest
import torch

from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.serving.http_server import HttpServer
from tests.support.running.server import CHAT, TEXT, chat_body, client, error_of, http, running
from tests.support.steering.uncertain import entropies, limit_between

_PROMPT = "Hi there"


@pytest.fixture(scope="module")
def mav(head: str, bases: tuple[str, str]) -> MAVInference:
    return MAVInference(head, bases[0], dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def limit(mav: MAVInference) -> float:
    form = mav.joined.form
    begun = form.tokens(form.render(_PROMPT))
    new = mav.generate(_PROMPT, 0, mav.decoding(max_new_tokens=8)).tokens
    return limit_between(entropies(mav.base, torch.tensor([[*begun, *new]])))


@pytest.fixture(scope="module")
def limited(head: str, bases: tuple[str, str], limit: float) -> Iterator[HttpServer]:
    """A server with a limit for requests that name none."""
    with running(head=head, bases=bases[:1], max_rows=8, steer_above=limit) as server:
        yield server


def counted(web: httpx2.Client) -> dict[str, float]:
    lines = web.get("/metrics").text.splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(metrics[f"mav_{name}_tokens_total"]) for name in ("generated", "steered")}


def test_a_request_is_steered_above_its_limit(
    web: httpx2.Client, mav: MAVInference, limit: float
) -> None:
    before = counted(web)
    found = web.post(CHAT, json=chat_body(alpha=4.0, steer_above=limit)).json()
    want = mav.generate(_PROMPT, 4.0, mav.decoding(max_new_tokens=8, steer_above=limit))
    assert found["choices"][0]["message"]["content"].rstrip() == want.response
    usage, after = found["usage"], counted(web)
    assert usage["steered_tokens"] == want.steered_tokens
    assert 0 < usage["steered_tokens"] < usage["completion_tokens"]
    assert after["steered"] - before["steered"] == want.steered_tokens
    assert after["generated"] - before["generated"] == len(want.tokens)


def test_without_a_limit_every_token_is_steered_unless_alpha_is_0(web: httpx2.Client) -> None:
    for alpha in (4.0, 0):
        before = counted(web)
        usage = web.post(CHAT, json=chat_body(alpha=alpha)).json()["usage"]
        assert "steered_tokens" not in usage
        steered = counted(web)["steered"] - before["steered"]
        assert steered == (usage["completion_tokens"] if alpha else 0)


def test_streams_and_log_probabilities(server: HttpServer, limit: float) -> None:
    with client(server) as ai:
        stream = ai.completions.create(
            model="first",
            prompt=_PROMPT,
            max_tokens=8,
            temperature=0,
            logprobs=1,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"alpha": 4.0, "steer_above": limit},
        )
        chunks = [*stream]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage is not None]
    changed = 0
    for chunk in chunks:
        for choice in chunk.choices:
            said = choice.logprobs
            if said is not None and said.token_logprobs:
                base = said.base_logprobs
                changed += sum(a != b for a, b in zip(said.token_logprobs, base, strict=True))
    assert 0 < changed < usage.completion_tokens
    assert usage.steered_tokens == changed


def test_the_servers_own_limit_holds_where_a_request_has_none(
    limited: HttpServer, mav: MAVInference, limit: float
) -> None:
    with http(limited) as web:
        own = web.post(CHAT, json=chat_body(alpha=4.0)).json()
        other = web.post(CHAT, json=chat_body(alpha=4.0, steer_above=0)).json()
        null = web.post(CHAT, json=chat_body(alpha=4.0, steer_above=None)).json()
    for found, above in ((own, limit), (other, 0.0), (null, limit)):
        want = mav.generate(_PROMPT, 4.0, mav.decoding(max_new_tokens=8, steer_above=above))
        assert found["choices"][0]["message"]["content"].rstrip() == want.response
        assert found["usage"]["steered_tokens"] == want.steered_tokens
    assert own["usage"]["steered_tokens"] < other["usage"]["steered_tokens"]


def test_a_limit_that_is_none_is_refused(web: httpx2.Client, ai: openai.OpenAI) -> None:
    del ai
    for wrong in (-1, "high", True, [1.0]):
        error = error_of(web.post(TEXT, json={"prompt": "Hi", "steer_above": wrong}), 400)
        assert error["param"] == "steer_above"
