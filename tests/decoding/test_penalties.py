"""Penalties and biases of logits: as a plain loop says, alone, in company and in `generate()`."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.request import Request
from mav.pipeline.decoding.sampling import SequenceSampler, choose_each
from mav.pipeline.decoding.steering.strengths import as_strength
from tests.support.steering.listeners import Listener, alone, decoder_of
from tests.support.steering.steered import steered, varied_base, whole_text_logits

LENGTH = 10
PROMPTS = ["Who would paint it?", "And who would mend it, and when would that be?", "Hi"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -2.0, "presence_penalty": -1.0},
    {"logit_bias": {7: 4.0, 12: -100, 90: 3.5}},
    {"frequency_penalty": 0.7, "presence_penalty": 1.1, "logit_bias": {40: 5, 41: 5}},
    {"frequency_penalty": 1.0, "repetition_penalty": 1.4, "logit_bias": {7: 30.0}},
]


@pytest.fixture(scope="module")
def mav() -> Iterator[MAVInference]:
    made = steered(varied_base("llama"))
    yield made
    made.close()


def prompt_of(mav: MAVInference, prompt: str) -> tuple[int, ...]:
    return tuple(mav.joined.form.tokens(mav.joined.form.render(prompt)))


def plain_choice(
    logits: list[float], prompt: tuple[int, ...], came: list[int], settings: dict[str, Any]
) -> int:
    """The most probable token, logit by logit."""
    changed = []
    for token, logit in enumerate(logits):
        if token in prompt or token in came:
            penalty = settings.get("repetition_penalty", 1.0)
            logit = logit * penalty if logit < 0 else logit / penalty
        logit -= settings.get("frequency_penalty", 0.0) * came.count(token)
        if token in came:
            logit -= settings.get("presence_penalty", 0.0)
        changed.append(logit + settings.get("logit_bias", {}).get(token, 0.0))
    return max(range(len(changed)), key=changed.__getitem__)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_row_of_logits_is_changed_as_a_plain_loop_says(
    settings: dict[str, Any], seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)
    prompt = (3, 40, 40)
    sampler = SequenceSampler(GenerationOptions(**settings), torch.device("cpu"), prompt)
    logits = 3 * torch.randn(100, generator=chance)
    before = logits.clone()
    got: list[int] = []
    for _ in range(30):
        want = plain_choice(logits.tolist(), prompt, got, settings)
        got += choose_each([sampler], logits[None])
        assert got[-1] == want
    assert torch.equal(logits, before)


def test_rows_in_company_are_what_they_are_alone_and_what_generate_says(mav: MAVInference) -> None:
    untouched = varied_base("llama")
    requests = [
        Request(
            prompt=prompt_of(mav, prompt),
            alpha=as_strength(6.0),
            decoding=GenerationOptions(max_new_tokens=LENGTH, **settings),
        )
        for prompt in PROMPTS
        for settings in SETTINGS
    ]
    chance, waiting = random.Random(2), [*requests]
    listener = Listener(decoder_of(mav))
    chance.shuffle(waiting)
    while waiting or listener.decoder.sequences:
        if waiting and (chance.random() < 0.5 or not listener.decoder.sequences):
            count = chance.randint(1, 4)
            listener.add(*waiting[:count])
            waiting = waiting[count:]
        else:
            listener.step()
    for number, request in enumerate(requests):
        heard = listener.of(request)
        assert heard.tokens == alone(mav, request).tokens
        answer = mav.generate(PROMPTS[number // len(SETTINGS)], 6.0, request.decoding)
        assert tuple(heard.tokens) == answer.tokens
        text = torch.tensor([[*request.prompt, *heard.tokens[:-1]]])
        alpha = torch.tensor([0.0] * (len(request.prompt) - 1) + [6.0] * len(heard.tokens))
        logits = whole_text_logits(mav, untouched, text, alpha)[len(request.prompt) - 1 :]
        settings = SETTINGS[number % len(SETTINGS)]
        assert heard.tokens == [
            plain_choice(row, request.prompt, heard.tokens[:at], settings)
            for at, row in enumerate(logits.tolist())
        ]
    assert len({tuple(listener.of(request).tokens) for request in requests}) > 12


def test_prompts_of_other_lengths_in_one_batch_of_generate(mav: MAVInference) -> None:
    how = GenerationOptions(max_new_tokens=LENGTH, **SETTINGS[5])
    together = mav.generate_batch(PROMPTS, [6.0] * len(PROMPTS), how)
    assert [one.tokens for one in together] == [
        mav.generate(prompt, 6.0, how).tokens for prompt in PROMPTS
    ]


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_a_seed_gives_the_same_answer_in_company(
    mav: MAVInference, settings: dict[str, Any]
) -> None:
    requests = [
        Request(
            prompt=prompt_of(mav, prompt),
            alpha=as_strength(4.0),
            decoding=GenerationOptions(
                max_new_tokens=LENGTH, temperature=1.2, min_p=0.02, top_k=40, seed=seed, **settings
            ),
        )
        for seed, prompt in enumerate(PROMPTS)
    ]
    listener = Listener(decoder_of(mav))
    listener.add(*requests)
    listener.until_done()
    for request in requests:
        assert listener.of(request).tokens == alone(mav, request).tokens


def test_beams_do_not_take_what_is_forbidden(mav: MAVInference) -> None:
    found = mav.generate("Hi", 6.0, GenerationOptions(max_new_tokens=LENGTH, num_beams=3))
    forbidden = dict.fromkeys(found.tokens, -100)
    other = mav.generate(
        "Hi",
        6.0,
        GenerationOptions(max_new_tokens=LENGTH, num_beams=3, logit_bias=tuple(forbidden.items())),
    )
    assert other.tokens
    assert not {*other.tokens} & {*found.tokens}


def test_a_token_that_the_base_does_not_have_is_refused(mav: MAVInference) -> None:
    size = mav.base.vocab_size
    how = GenerationOptions(max_new_tokens=2, logit_bias=((size, 1.0),))
    expected = f"logit_bias: got the token {size}, expected 0 to {size - 1}"
    with pytest.raises(UsageError, match=expected):
        mav.generate("Hi", 1.0, how)
    decoder = decoder_of(mav)
    with pytest.raises(UsageError, match=expected):
        decoder.add([Request(prompt=(1, 2), alpha=as_strength(1.0), decoding=how)])
    assert not decoder.sequences
