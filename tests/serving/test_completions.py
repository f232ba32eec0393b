"""Completions, requested by OpenAI's client, equal those of `mav generate`."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch

from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.preferences.prompt_format import PromptFormat

ASK: dict[str, Any] = {
    "model": "first",
    "messages": [{"role": "user", "content": "How do I mend a kite?"}],
    "temperature": 0,
    "max_tokens": 24,
}
TEXT = "\n\nHuman: Hi\n\nAssistant:"


@pytest.fixture(scope="module")
def mav(head: str, bases: tuple[str, str]) -> MAVInference:
    return MAVInference(head, bases[0], dtype=torch.float32, device="cpu")


def content(ai: openai.OpenAI, **changes: Any) -> str:
    extra = {"alpha": changes.pop("alpha")} if "alpha" in changes else None
    completion = ai.chat.completions.create(**{**ASK, **changes}, extra_body=extra)
    text = completion.choices[0].message.content
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("alpha", [0, 1.0, 20.0, -8.0, "0:20,12:-3"])
def test_a_completion_equals_mav_generate(ai: openai.OpenAI, mav: MAVInference, alpha: Any) -> None:
    from mav.pipeline.decoding.alpha import AlphaSchedule

    strength = AlphaSchedule.parse(alpha) if isinstance(alpha, str) else alpha
    want = mav.generate(ASK["messages"], strength, GenerationOptions(max_new_tokens=24))
    completion = ai.chat.completions.create(**ASK, extra_body={"alpha": alpha})
    assert (completion.choices[0].message.content or "").rstrip() == want.response
    assert completion.choices[0].finish_reason == want.finish
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(want.tokens)
    assert completion.usage.prompt_tokens == len(mav.joined.form.tokens(want.prompt))
    assert completion.model == "first"


def test_alpha_changes_the_completion_and_defaults_to_1(ai: openai.OpenAI) -> None:
    assert content(ai, alpha=0) != content(ai, alpha=20)
    assert content(ai) == content(ai, alpha=1.0)


def test_a_stream_is_the_completion_in_chunks(ai: openai.OpenAI) -> None:
    whole = content(ai, alpha=20)
    pieces, finish, usage = [], None, None
    with ai.chat.completions.create(
        **ASK, extra_body={"alpha": 20}, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                finish = choice.finish_reason or finish
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    assert finish == "length"
    assert usage is not None
    assert usage.completion_tokens == 24


def test_log_probabilities_are_those_of_base_and_head(ai: openai.OpenAI, mav: MAVInference) -> None:
    completion = ai.chat.completions.create(
        **ASK, logprobs=True, top_logprobs=3, extra_body={"alpha": 2.0}
    )
    details = completion.choices[0].logprobs
    assert details is not None
    assert details.content
    ids = torch.tensor([mav.joined.form.tokens(mav.joined.form.render(ASK["messages"]))])
    with mav.steering(2.0) as model:
        aligned = model(ids).logits[0, -1].log_softmax(-1)
    base = mav.base.model(ids).logits[0, -1].log_softmax(-1)
    first, token = details.content[0], int(aligned.argmax())
    assert first.token == mav.base.tokenizer.decode([token])
    assert first.logprob == pytest.approx(float(aligned[token]), abs=1e-4)
    assert first.model_extra is not None
    assert first.model_extra["base_logprob"] == pytest.approx(float(base[token]), abs=1e-4)
    assert first.top_logprobs[0].token == first.token
    assert len(first.top_logprobs) == 3
    assert all(math.isfinite(token.logprob) and token.bytes for token in details.content)


def test_at_alpha_zero_nothing_differs_from_the_base(ai: openai.OpenAI) -> None:
    completion = ai.chat.completions.create(**ASK, logprobs=True, extra_body={"alpha": 0})
    details = completion.choices[0].logprobs
    assert details is not None
    for token in details.content or []:
        assert token.model_extra is not None
        assert token.model_extra["base_logprob"] == token.logprob


def test_the_bytes_of_all_tokens_are_the_text(ai: openai.OpenAI) -> None:
    completion = ai.chat.completions.create(**ASK, logprobs=True)
    details = completion.choices[0].logprobs
    assert details is not None
    joined = b"".join(bytes(token.bytes or []) for token in details.content or [])
    # A text does not show special tokens.
    shown = joined.replace(b"<bos>", b"").decode(errors="replace").strip()
    assert shown == (completion.choices[0].message.content or "").strip()


def test_a_completion_goes_on_with_the_text_as_it_is(ai: openai.OpenAI, mav: MAVInference) -> None:
    want = mav.generate("Hi", 5.0, GenerationOptions(max_new_tokens=12))
    completion = ai.completions.create(
        model="first",
        prompt=[TEXT, "Once"],
        max_tokens=12,
        temperature=0,
        logprobs=2,
        extra_body={"alpha": 5.0},
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert completion.choices[0].text.strip() == want.response
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.model_extra is not None
    assert logprobs.tokens
    lengths = {
        len(column or [])
        for column in (
            logprobs.tokens,
            logprobs.token_logprobs,
            logprobs.top_logprobs,
            logprobs.text_offset,
            logprobs.model_extra["base_logprobs"],
        )
    }
    assert lengths == {len(logprobs.tokens)}


def test_a_completion_streams(ai: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "first",
        "prompt": TEXT,
        "max_tokens": 12,
        "temperature": 0,
        "n": 2,
    }
    whole = ai.completions.create(**options)
    texts = {0: "", 1: ""}
    with ai.completions.create(**options, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_choices_of_a_seed_differ_and_are_reproducible(ai: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        completion = ai.chat.completions.create(**{**ASK, "temperature": 1.5}, n=3, seed=seed)
        return [choice.message.content for choice in completion.choices]

    first = texts(5)
    assert len(set(first)) == 3
    assert texts(5) == first
    assert texts(50) != first
    # The largest seed has no successor.
    assert len(set(texts(2**62))) == 3


def test_a_stop_string_ends_a_completion_and_is_not_part_of_it(ai: openai.OpenAI) -> None:
    whole = content(ai, alpha=20)
    stop = whole[len(whole) // 2 :][:2]
    completion = ai.chat.completions.create(**ASK, stop=[stop, "@@"], extra_body={"alpha": 20})
    assert completion.choices[0].message.content == whole[: whole.index(stop)]
    assert completion.choices[0].finish_reason == "stop"


def test_what_ends_a_turn_ends_no_text_that_goes_on(
    ai: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"model": "first", "prompt": TEXT, "max_tokens": 24, "temperature": 0}
    whole = ai.completions.create(**options, extra_body={"alpha": 20}).choices[0].text
    ends = whole[len(whole) // 2 :][:2]
    monkeypatch.setattr(PromptFormat, "stops", (ends,))
    assert ai.completions.create(**options, extra_body={"alpha": 20}).choices[0].text == whole
    completion = ai.completions.create(**options, stop=ends, extra_body={"alpha": 20})
    assert completion.choices[0].text == whole[: whole.index(ends)]
    turn = content(ai, messages=[{"role": "user", "content": "Hi"}], alpha=20)
    assert turn == whole[: whole.index(ends)].lstrip()


def test_text_parts_are_one_text(ai: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "mend a kite?"}]
    assert content(ai, messages=[{"role": "user", "content": parts}]) == content(ai)


def test_requests_together_get_what_they_get_alone(ai: openai.OpenAI) -> None:
    requests: list[dict[str, Any]] = [
        {
            "alpha": alpha,
            "max_tokens": 10 + 3 * number,
            "temperature": 0.9 * (number % 2),
            "seed": number,
            "messages": [{"role": "user", "content": "Tell me of bread. " * (number + 1)}],
        }
        for number, alpha in enumerate([0, 1, 5, 20, -5, 0, 12, 3, 20, 1])
    ]
    alone = [content(ai, **dict(request)) for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: content(ai, **dict(request)), requests))
    assert together == alone


def test_bases_are_listed_and_switched_by_name(
    ai: openai.OpenAI, head: str, bases: tuple[str, str]
) -> None:
    assert [model.id for model in ai.models.list()] == ["first", "second"]
    other = MAVInference(head, bases[1], dtype=torch.float32, device="cpu")
    want = other.generate(ASK["messages"], 1.0, GenerationOptions(max_new_tokens=24)).response
    first = content(ai)
    assert content(ai, model="second").rstrip() == want
    assert content(ai) == first != content(ai, model="second")
    assert content(ai) == first


def test_requests_for_two_bases_at_once_each_get_theirs(ai: openai.OpenAI) -> None:
    want = {name: content(ai, model=name) for name in ("first", "second")}
    names = ["first", "second"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        texts = list(pool.map(lambda name: content(ai, model=name), names))
    assert texts == [want[name] for name in names]


def test_a_base_is_retrieved_by_name(ai: openai.OpenAI) -> None:
    assert ai.models.retrieve("second").id == "second"
    with pytest.raises(openai.NotFoundError, match="expected one of first, second"):
        ai.models.retrieve("third")


def test_a_prompt_may_be_tokens(ai: openai.OpenAI, mav: MAVInference) -> None:
    tokens = mav.base.tokenizer(TEXT)["input_ids"]
    options: dict[str, Any] = {"model": "first", "max_tokens": 8, "temperature": 0}
    want = ai.completions.create(prompt=TEXT, **options).choices[0].text
    assert ai.completions.create(prompt=tokens, **options).choices[0].text == want
    several = ai.completions.create(prompt=[tokens, tokens[:3]], **options)
    assert several.choices[0].text == want
    assert len(several.choices) == 2
    with pytest.raises(openai.BadRequestError, match="got the token 300, expected 0 to 299"):
        ai.completions.create(prompt=[1, 300], **options)


def test_there_are_as_many_alternatives_as_requested(ai: openai.OpenAI) -> None:
    """Also where several of them are bytes, which all show alike."""
    completion = ai.completions.create(
        model="first", prompt=TEXT, max_tokens=40, temperature=0, logprobs=5
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert {len(names or {}) for names in logprobs.top_logprobs or []} == {5}
    assert any(n.startswith("bytes:") for names in logprobs.top_logprobs or [] for n in names)


@pytest.mark.parametrize("alpha", [0, 5, 20])
def test_a_token_is_where_its_text_is(ai: openai.OpenAI, alpha: int) -> None:
    completion = ai.completions.create(
        model="first", prompt=TEXT, max_tokens=40, temperature=0, logprobs=0,
        extra_body={"alpha": alpha},
    )  # fmt: skip
    text, logprobs = completion.choices[0].text, completion.choices[0].logprobs
    assert logprobs is not None
    offsets = logprobs.text_offset or []
    assert offsets == sorted(offsets)
    whole = [
        (token, at)
        for token, at in zip(logprobs.tokens or [], offsets, strict=True)
        if not token.startswith(("bytes:", "<"))
    ]
    assert whole
    assert all(text[at : at + len(token)] == token for token, at in whole)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_stop_string_are_not_sent(ai: openai.OpenAI, stream: bool) -> None:
    whole = content(ai, alpha=20)
    at = len(whole) // 2
    stop = whole[at : at + 4]
    options: dict[str, Any] = {
        **ASK,
        "logprobs": True,
        "stop": [stop],
        "extra_body": {"alpha": 20},
    }
    if stream:
        text, tokens = "", list[Any]()
        with ai.chat.completions.create(**options, stream=True) as chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    tokens += choice.logprobs.content or [] if choice.logprobs else []
    else:
        (choice,) = ai.chat.completions.create(**options).choices
        assert choice.logprobs is not None
        text, tokens = choice.message.content or "", choice.logprobs.content or []
    assert text == whole[: whole.index(stop)]
    joined = b"".join(bytes(token.bytes or []) for token in tokens).replace(b"<bos>", b"")
    # The last token may begin in the completion and end in the stop string.
    assert joined.decode(errors="replace").lstrip().startswith(text)
    assert len(tokens) <= len(text)
    last = bytes(tokens[-1].bytes or []).decode(errors="replace")
    assert len(joined.decode(errors="replace").lstrip()) - len(text) < max(1, len(last))
