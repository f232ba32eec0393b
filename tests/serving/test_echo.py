"""Prompts that are sent back, with the log-probabilities of their tokens."""

from typing import Any

import httpx2
import openai
import pytest
import torch

from mav.pipeline.base.loading import load_base
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.serving.api.echo import Echo, echo_of
from mav.pipeline.serving.api.logprobs import TokenLogprob
from mav.pipeline.serving.api.requests import text_request
from mav.pipeline.serving.api.responses import TEXT as FORM
from mav.pipeline.serving.api.responses import ResponseWriter
from mav.pipeline.serving.options import ServeOptions
from mav.pipeline.serving.prompts import MAX_PROMPT_LOGPROBS
from mav.pipeline.serving.queue import Started, TokenEvent
from tests.support.models.tiny import tiny_tokenizer
from tests.support.running.server import TEXT, error_of
from tests.support.steering.steered import whole_text_logits

PROMPT = "\n\nHuman: How do I mend a kité?\n\nAssistant: First look."


@pytest.fixture(scope="module")
def mav(head: str, bases: tuple[str, str]) -> MAVInference:
    return MAVInference(head, bases[0], dtype=torch.float32, device="cpu")


def ids(text: str) -> list[int]:
    found: list[int] = tiny_tokenizer()(text)["input_ids"]
    return found


def choices(web: httpx2.Client, **changes: Any) -> list[dict[str, Any]]:
    body = {"model": "first", "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    response = web.post(TEXT, json={**body, **changes})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


@pytest.mark.parametrize("alpha", [0, 2.0, -8.0])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_they_are_those_of_base_and_head_for_the_given_tokens(
    web: httpx2.Client, mav: MAVInference, bases: tuple[str, str], alpha: float, max_tokens: int
) -> None:
    (choice,) = choices(web, prompt=PROMPT, alpha=alpha, logprobs=3, max_tokens=max_tokens)
    found = choice["logprobs"]
    untouched = load_base(bases[0], dtype="float32", device="cpu")
    text = torch.tensor([ids(PROMPT)])
    count = text.shape[1]
    for name, strength in (("token_logprobs", alpha), ("base_logprobs", 0.0)):
        logits = whole_text_logits(mav, untouched, text, torch.tensor(float(strength)))
        every = logits.log_softmax(-1)
        own = every[:-1].gather(-1, text[0, 1:, None])[:, 0].tolist()
        assert found[name][0] is None
        assert found[name][1:count] == pytest.approx(own, abs=1e-4)
        if max_tokens and name == "token_logprobs":
            assert found[name][count] == pytest.approx(float(every[-1].max()), abs=1e-4)
        if name == "token_logprobs":
            best = every[:-1].topk(3).values.tolist()
            assert found["top_logprobs"][0] is None
            for top, values in zip(found["top_logprobs"][1:count], best, strict=True):
                assert [*top.values()] == pytest.approx(values, abs=1e-4)
    lengths = {len(found[name]) for name in found}
    assert lengths == {count + max_tokens}


def test_a_token_is_greedy_where_its_value_is_the_highest_exactly(web: httpx2.Client) -> None:
    """Readers compare a token's value with the highest one."""
    (first,) = choices(web, prompt=PROMPT, max_tokens=12)
    written = [*ids(PROMPT), *ids(first["text"][len(PROMPT) :])]
    (choice,) = choices(web, prompt=[written])
    found = choice["logprobs"]
    same = [
        value == max(top.values())
        for value, top in zip(found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
    ]
    assert any(same)
    assert not all(same)


def test_the_forms_of_a_prompt_give_the_same(web: httpx2.Client) -> None:
    other = "Once upon a time there was a bike"
    (one,) = choices(web, prompt=PROMPT)
    (of_ids,) = choices(web, prompt=ids(PROMPT))
    begins = [found["logprobs"].pop("text_offset") for found in (one, of_ids)]
    assert of_ids == one
    # But where the second half of a character is, which has no place of its own.
    halves = [name.startswith("bytes:") for name in one["logprobs"]["tokens"]]
    assert [at for at, half in zip(begins[0], halves, strict=True) if not half] == [
        at for at, half in zip(begins[1], halves, strict=True) if not half
    ]
    for several in ([PROMPT, other], [ids(PROMPT), ids(other)]):
        first, second = choices(web, prompt=several)
        assert first["text"] == one["text"]
        assert first["logprobs"]["tokens"] == one["logprobs"]["tokens"]
        # Rows of a batch are padded to its longest, which moves the last digits.
        assert first["logprobs"]["token_logprobs"][1:] == pytest.approx(
            one["logprobs"]["token_logprobs"][1:], abs=1e-4
        )
        assert second["text"].startswith(other)
        assert second["index"] == 1


def test_text_and_offsets_go_on_from_the_prompt_to_the_completion(web: httpx2.Client) -> None:
    (plain,) = choices(web, prompt=PROMPT, echo=False, max_tokens=8)
    (choice,) = choices(web, prompt=PROMPT, max_tokens=8)
    assert choice["text"] == PROMPT + plain["text"]
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    read = zip(choice["logprobs"]["tokens"], offsets, strict=True)
    whole = [(token, at) for token, at in read if not token.startswith(("bytes:", "<"))]
    assert len(whole) > len(ids(PROMPT)) // 2
    assert all(choice["text"][at : at + len(token)] == token for token, at in whole)
    assert offsets[len(ids(PROMPT))] == len(PROMPT)
    (bare,) = choices(web, prompt=PROMPT, logprobs=None, max_tokens=8)
    assert bare["text"] == choice["text"]
    assert bare["logprobs"] is None


def test_without_tokens_the_prompt_is_all_there_is(web: httpx2.Client) -> None:
    body = {"model": "first", "prompt": [PROMPT, "Hi"], "echo": True, "max_tokens": 0, "n": 2}
    found = web.post(TEXT, json=body).json()
    assert [choice["text"] for choice in found["choices"]] == [PROMPT, PROMPT, "Hi", "Hi"]
    assert {choice["finish_reason"] for choice in found["choices"]} == {"length"}
    count = len(ids(PROMPT)) + len(ids("Hi"))
    assert found["usage"] == {
        "prompt_tokens": count,
        "completion_tokens": 0,
        "total_tokens": count,
    }


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_a_stream_is_the_completion_in_chunks(ai: openai.OpenAI, max_tokens: int) -> None:
    ask: dict[str, Any] = {
        "model": "first", "prompt": [PROMPT, "Hi there"], "echo": True, "logprobs": 2,
        "max_tokens": max_tokens, "temperature": 0,
    }  # fmt: skip
    whole = ai.completions.create(**ask)
    texts, ends = ["", ""], [0, 0]
    values: list[list[float | None]] = [[], []]
    for chunk in ai.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                values[choice.index] += choice.logprobs.token_logprobs or []
            ends[choice.index] += choice.finish_reason is not None
    assert texts == [choice.text for choice in whole.choices]
    assert values == [
        choice.logprobs.token_logprobs for choice in whole.choices if choice.logprobs is not None
    ]
    assert ends == [1, 1]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"max_tokens": 0, "echo": False}, "max_tokens", "got 0, expected at least 1, or echo"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"echo": "yes"}, "echo", "valid boolean"),
        ({"alpha": "0:1,8:2"}, "alpha", "got the schedule 0:1,8:2, expected a number"),
        ({"prompt": [[1, 300]]}, "prompt", "got the token 300, expected 0 to 299"),
        ({"prompt": []}, "prompt", ""),
        ({"prompt": [[]]}, "prompt", ""),
        ({"prompt": [[1], "a"]}, "prompt", ""),
        (
            {"prompt": [[5] * 400] * 8, "logprobs": 20},
            "logprobs",
            f"got 67200 log-probabilities of prompts, 21 for each of 3200 tokens, expected at most "
            f"{MAX_PROMPT_LOGPROBS}",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_one_clear_text(
    web: httpx2.Client, changes: dict[str, Any], param: str, message: str
) -> None:
    body = {"model": "first", "prompt": "Hi", "echo": True, "logprobs": 1, "max_tokens": 1}
    error = error_of(web.post(TEXT, json={**body, **changes}), 400)
    assert error["param"].startswith(param)
    assert message in error["message"]
    assert "\n" not in error["message"]


def test_chats_have_no_echo(web: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 1, "echo": True}
    assert "not supported" in error_of(web.post("/v1/chat/completions", json=body), 400)["message"]
    assert web.post("/v1/chat/completions", json={**body, "echo": False}).status_code == 200


def described(name: str) -> TokenLogprob:
    return {"token": name, "logprob": -1.0, "bytes": None, "base_logprob": -1.0, "top_logprobs": []}


@pytest.mark.parametrize(("echo", "count"), [(True, 2), (False, 0)])
def test_the_last_value_is_the_last_tokens_whatever_ended_it(echo: bool, count: int) -> None:
    """An end token, without text, and the beginning of a stop text."""
    body = {"prompt": "Hi", "echo": echo, "logprobs": 0, "max_tokens": 5}
    request = text_request(body, ServeOptions(head="h"))
    echoes = (Echo(text="Hi", offsets=(0,)),) if echo else ()
    started = Started(model="first", prompt_tokens=1, echoes=echoes)
    writer = ResponseWriter(FORM, request, started)
    prompt = ({**described("Hi"), "logprob": None},) if echo else ()
    for offset, finish in ((0, None), (1, "stop")):
        writer.add(
            TokenEvent(
                choice=0,
                text="",
                offset=offset,
                finish_reason=finish,  # type: ignore[arg-type]
                steered=True,
                logprob=described("x"),
                prompt=prompt if offset == 0 else (),  # type: ignore[arg-type]
            )
        )
    found = writer.body()["choices"][0]["logprobs"]
    assert found["token_logprobs"] == ([None, -1.0, -1.0] if echo else [])
    assert found["text_offset"] == ([0, 2, 2] if echo else [])
    assert len(found["tokens"]) == count + echo


def test_a_slow_tokenizers_offsets_are_found_by_decoding() -> None:
    fast = tiny_tokenizer()

    class Slow:
        is_fast = False
        decode = staticmethod(fast.decode)

    tokens = [fast.bos_token_id, *ids(PROMPT)]
    quick, plain = echo_of(fast, PROMPT, tokens), echo_of(Slow(), PROMPT, tokens)
    assert quick.text == plain.text == PROMPT
    assert len(quick.offsets) == len(plain.offsets) == len(tokens)
    assert quick.offsets[:2] == (0, 0)
    whole = [
        at
        for at, token in enumerate(tokens)
        if "\N{REPLACEMENT CHARACTER}" not in fast.decode([token])
    ]
    assert [quick.offsets[at] for at in whole] == [plain.offsets[at] for at in whole]
    assert echo_of(fast, (*tokens,), tokens).text == PROMPT
