"""Rows that come and go between any two tokens: each is as if it had been alone."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.steering.strengths import Alpha, as_strength
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import ARCHITECTURES
from tests.support.steering.heads import KINDS
from tests.support.steering.listeners import Listener, alone, decoder_of
from tests.support.steering.steered import steered, varied_base, whole_text_logits
from tests.support.sweeps import sweep

NO_KEYS_AND_VALUES = ("qwen3_next", "qwen3_5_text")
ROWS_OF_TOKENS = [name for name in ARCHITECTURES if name not in NO_KEYS_AND_VALUES]

STRENGTHS: list[Alpha] = [0.0, 12.0, -8.0, AlphaSchedule(((0, 18.0), (6, -9.0)))]


def random_request(chance: random.Random, **decoding: Any) -> Request:
    prompt = tuple(chance.randrange(2, 300) for _ in range(chance.randint(1, 25)))
    settings: dict[str, Any] = {"max_new_tokens": chance.randint(1, 12), **decoding}
    return Request(
        prompt=prompt,
        alpha=as_strength(chance.choice(STRENGTHS)),
        decoding=GenerationOptions(**settings),
        top_logprobs=chance.choice([None, 0, 3]),
    )


def in_company(mav: MAVInference, requests: list[Request], chance: random.Random) -> Listener:
    """Let requests join when they like, several at once or one by one."""
    listener, waiting = Listener(decoder_of(mav)), list(requests)
    while waiting or listener.decoder.sequences:
        if waiting and chance.random() < 0.4:
            count = chance.randint(1, 3)
            listener.add(*waiting[:count])
            waiting = waiting[count:]
        else:
            listener.step()
    return listener


@pytest.fixture(scope="module", params=["mlp", "unembedding"])
def mav(request: pytest.FixtureRequest) -> Iterator[MAVInference]:
    made = steered(kind=request.param)
    yield made
    made.close()


# A head that acts on the state meets what an architecture does to its logits.
@sweep({"kind": ["unembedding", "mlp"], "architecture": ROWS_OF_TOKENS}, meet=1)
def test_rows_of_every_architecture_are_as_if_alone(architecture: str, kind: HeadKind) -> None:
    mav, untouched = steered(varied_base(architecture), kind), varied_base(architecture)
    chance = random.Random(3)
    requests = [random_request(chance) for _ in range(5)]
    listener = in_company(mav, requests, chance)
    for request in requests:
        heard, single = listener.of(request), alone(mav, request)
        assert (heard.tokens, heard.text, heard.finish) == (
            single.tokens,
            single.text,
            single.finish,
        )
        # And as one pass over the whole text says.
        text = torch.tensor([[*request.prompt, *heard.tokens[:-1]]])
        strengths = [request.alpha.at(at) for at in range(len(heard.tokens))]
        alpha = torch.tensor([0.0] * (len(request.prompt) - 1) + strengths)
        logits = whole_text_logits(mav, untouched, text, alpha)[len(request.prompt) - 1 :]
        assert heard.tokens == logits.argmax(-1).tolist()
    assert len({tuple(listener.of(request).tokens) for request in requests}) > 3


@pytest.mark.parametrize("architecture", NO_KEYS_AND_VALUES)
def test_a_running_state_is_refused(architecture: str) -> None:
    with pytest.raises(BaseModelError, match="keeps a running state"):
        decoder_of(steered(varied_base(architecture)))


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
def test_rows_are_what_generate_says(mav: MAVInference, seed: int) -> None:
    chance = random.Random(seed)
    prompts = [f"Who would {verb} it {seed} times?" * chance.randint(1, 3) for verb in "abcdefg"]
    form = mav.joined.form
    how = GenerationOptions(max_new_tokens=12)
    requests = [
        Request(
            prompt=tuple(form.tokens(form.render(prompt))),
            alpha=as_strength(chance.choice(STRENGTHS)),
            decoding=how,
        )
        for prompt in prompts
    ]
    listener = in_company(mav, requests, chance)
    want = mav.generate_batch(prompts, [request.alpha for request in requests], how)
    for request, answer in zip(requests, want, strict=True):
        heard = listener.of(request)
        assert tuple(heard.tokens) == answer.tokens
        assert heard.text.rstrip() == answer.response
        assert heard.finish == answer.finish


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))]
)
def test_a_seed_gives_the_same_answer_in_any_company(mav: MAVInference, seed: int) -> None:
    chance = random.Random(seed)
    requests = [
        random_request(chance, temperature=1.4, top_p=0.95, seed=number, max_new_tokens=10)
        for number in range(6)
    ]
    listener = in_company(mav, requests, chance)
    for request in requests:
        assert listener.of(request).tokens == alone(mav, request).tokens
    again = in_company(mav, requests, random.Random(99))
    assert all(listener.of(one).tokens == again.of(one).tokens for one in requests)


def test_requests_that_differ_in_their_seed_alone_differ(mav: MAVInference) -> None:
    requests = [
        Request(
            prompt=(5, 6, 7),
            alpha=as_strength(1.0),
            decoding=GenerationOptions(max_new_tokens=10, temperature=1.4, seed=seed),
        )
        for seed in (1, 2, 1)
    ]
    listener = in_company(mav, requests, random.Random(0))
    first, second, third = (listener.of(request).tokens for request in requests)
    assert first == third != second


@sweep(
    {
        "architecture": ["llama", "gemma2-window", "cohere"],
        "temperature": [0.0, 1.5],
        "kind": KINDS,
    }
)
def test_log_probabilities_are_those_of_the_whole_text(
    architecture: str, temperature: float, kind: HeadKind
) -> None:
    mav, untouched = steered(varied_base(architecture), kind), varied_base(architecture)
    chance = random.Random(5)
    requests = [
        Request(
            prompt=tuple(chance.randrange(2, 300) for _ in range(length)),
            alpha=as_strength(alpha),
            decoding=GenerationOptions(
                max_new_tokens=7, temperature=temperature, seed=4, top_p=0.9
            ),
            top_logprobs=3,
            kl=True,
        )
        for length, alpha in ((4, 0.0), (9, 2.0), (17, STRENGTHS[3]))
    ]
    listener = in_company(mav, requests, chance)
    for request in requests:
        heard = listener.of(request)
        text = torch.tensor([[*request.prompt, *heard.tokens[:-1]]])
        strengths = [request.alpha.at(at) for at in range(len(heard.tokens))]
        alpha = torch.tensor([0.0] * (len(request.prompt) - 1) + strengths)
        after = slice(len(request.prompt) - 1, None)
        chosen = torch.tensor(heard.tokens)[:, None]
        for got, by in ((heard.aligned, alpha), (heard.base, torch.zeros_like(alpha))):
            logprobs = whole_text_logits(mav, untouched, text, by)[after].log_softmax(-1)
            want = logprobs.gather(-1, chosen)[:, 0]
            torch.testing.assert_close(torch.tensor(got), want, rtol=1e-4, atol=1e-4)
        by_alpha, plain = (
            whole_text_logits(mav, untouched, text, by)[after].log_softmax(-1)
            for by in (alpha, torch.zeros_like(alpha))
        )
        kl = (by_alpha.exp() * (by_alpha - plain)).sum(-1)
        torch.testing.assert_close(torch.tensor(heard.kl), kl, rtol=1e-4, atol=1e-4)
        assert any(heard.kl) == any(strengths)
        top = by_alpha.topk(3)
        assert [[token for token, _ in one] for one in heard.top] == top.indices.tolist()
        values = torch.tensor([[value for _, value in one] for one in heard.top])
        torch.testing.assert_close(values, top.values, rtol=1e-4, atol=1e-4)


def test_log_probabilities_are_there_for_whom_asked(mav: MAVInference) -> None:
    how = GenerationOptions(max_new_tokens=3)
    asked, silent = (
        Request(prompt=(5, 6), alpha=as_strength(1.0), decoding=how, top_logprobs=wanted)
        for wanted in (0, None)
    )
    listener = Listener(decoder_of(mav))
    listener.add(asked, silent)
    listener.until_done()
    assert len(listener.of(asked).aligned) == 3
    assert listener.of(asked).top == [()] * 3
    assert listener.of(silent).aligned == []
    assert listener.of(silent).tokens == listener.of(asked).tokens


def test_a_cancelled_row_leaves_and_the_others_do_not_notice(mav: MAVInference) -> None:
    chance = random.Random(8)
    requests = [random_request(chance, max_new_tokens=9) for _ in range(4)]
    listener = Listener(decoder_of(mav))
    listener.add(*requests)
    listener.step()
    cancelled = listener.sequences[id(requests[1])]
    listener.decoder.cancel(cancelled)
    assert cancelled not in listener.decoder.sequences
    listener.decoder.cancel(cancelled)
    listener.until_done()
    assert len(listener.of(requests[1]).tokens) == 2
    for request in (requests[0], *requests[2:]):
        assert listener.of(request).tokens == alone(mav, request).tokens


def test_a_stop_string_ends_a_row(mav: MAVInference) -> None:
    whole = alone(
        mav, Request(prompt=(5, 6, 7), alpha=as_strength(5.0), decoding=GenerationOptions())
    )
    stop = whole.text[4:6]
    request = Request(
        prompt=(5, 6, 7),
        alpha=as_strength(5.0),
        decoding=GenerationOptions(stop=(stop,)),
        is_turn=False,
    )
    listener = in_company(mav, [request, random_request(random.Random(1))], random.Random(2))
    heard = listener.of(request)
    assert heard.finish == "stop"
    assert heard.tokens == whole.tokens[: len(heard.tokens)]
    assert stop not in heard.text
    unstripped = mav.base.tokenizer.decode(whole.tokens, skip_special_tokens=True)
    assert heard.text == unstripped[: unstripped.find(stop)]


def test_a_row_waits_for_the_prompts_of_others(
    mav: MAVInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 3.0
    monkeypatch.setattr("mav.pipeline.decoding.continuous_batching.perf_counter", lambda: clock)
    decoder = decoder_of(mav)
    first, second = (
        Request(prompt=prompt, alpha=as_strength(1.0), decoding=GenerationOptions())
        for prompt in ((5, 6, 7), (8, 9))
    )
    waited = [[new.seconds for new in decoder.add([first])]]
    clock = 4.0
    waited.append([new.seconds for new in decoder.step()])
    clock = 9.0
    waited.append([new.seconds for new in decoder.add([second])])
    clock = 11.0
    waited.append([new.seconds for new in decoder.step()])
    assert waited == [[None], [1.0], [None], [7.0, 2.0]]


def test_memory_goes_with_the_longest_row(mav: MAVInference) -> None:
    decoder = decoder_of(mav)
    listener = Listener(decoder)
    long, short = (
        Request(
            prompt=tuple(range(2, 2 + length)),
            alpha=as_strength(alpha),
            decoding=GenerationOptions(max_new_tokens=most),
        )
        for length, alpha, most in ((40, 1.0, 3), (5, 2.0, 8))
    )
    listener.add(long, short)

    def sizes() -> set[tuple[int, int]]:
        layers = decoder._cache.layers
        return {(*tensor.shape[:1], tensor.shape[2]) for layer in layers
                for tensor in (layer.keys, layer.values)}  # fmt: skip

    assert sizes() == {(2, 40)}
    listener.step()
    listener.step()
    assert listener.of(long).finish
    assert sizes() == {(1, 7)}
    assert decoder._mask.shape == (1, 7)
    listener.until_done()
    assert decoder._mask.numel() == 0
    assert not decoder._cache.layers
    assert listener.of(short).tokens == alone(mav, short).tokens


def test_prompts_that_are_too_many_for_one_pass_are_read_in_several(
    mav: MAVInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(4)
    requests = [random_request(chance) for _ in range(7)]
    monkeypatch.setattr("mav.pipeline.decoding.request.PREFILL_TOKENS", 26)
    passes: list[int] = []
    handle = mav.base.model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        listener = Listener(decoder_of(mav))
        listener.add(*requests)
    finally:
        handle.remove()
    assert 1 < len(passes) < len(requests)
    assert max(passes) <= 26, "no prompt is longer by itself"
    listener.until_done()
    assert all(listener.of(one).tokens == alone(mav, one).tokens for one in requests)


def test_nothing_steers_the_base_between_steps(mav: MAVInference) -> None:
    ids = torch.tensor([[5, 6, 7]])
    want = mav.base.model(ids).logits
    listener = Listener(decoder_of(mav))
    listener.add(random_request(random.Random(0), max_new_tokens=9))
    assert torch.equal(mav.base.model(ids).logits, want)


def test_without_rows_there_is_no_step(mav: MAVInference) -> None:
    assert decoder_of(mav).step() == []
    assert decoder_of(mav).add([]) == []


def test_an_end_token_ends_a_row(mav: MAVInference, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(prompt=(5, 6, 7), alpha=as_strength(5.0), decoding=GenerationOptions())
    third = alone(mav, request).tokens[2]
    monkeypatch.setattr(mav.base.model.generation_config, "eos_token_id", [0, third])
    heard = alone(mav, request)
    assert heard.finish == "stop"
    assert heard.tokens.index(third) == len(heard.tokens) - 1 <= 2
