"""Every way of `generate()`, with the head in place: each gives what one plain pass says."""

from functools import cache
from typing import Any

import pytest
import torch

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import Generation, GenerationOptions
from mav.pipeline.decoding.steering.strengths import Alpha
from mav.pipeline.runtime.choices import HeadKind
from tests.support.steering.steered import (
    plain_generate,
    steered,
    varied_base,
    whole_text_choices,
    whole_text_logits,
)
from tests.support.sweeps import sweep

NEW = 9
ALPHA = 12.0
RISING = AlphaSchedule(((0, 0.0), (2, 1.0), (5, 16.0)))
FALLING = AlphaSchedule(((0, 18.0), (4, -9.0)))

PROMPTS = ["Hi", "How do I mend a kite in the old red house?", "Who would sell two chairs?"]
EACH: list[Alpha] = [ALPHA, FALLING, RISING]

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"temperature": 1.3, "top_p": 0.9, "seed": 5},
    "beams": {"num_beams": 3},
}
# What transformers calls the same.
PLAIN: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 0},
    "beams": {"num_beams": 3},
}
CACHES = ("dynamic", "static", "none")
# Rotary positions; soft-capped and windowed; learned positions.
BASES = ("llama", "gemma2-window", "gpt2")

# Soft-caps are the harder case of a head that acts on the state.
STEERED = [*(f"{base} mlp" for base in BASES), "gemma2-window unembedding", "llama unembedding"]


@cache
def made(base: str, kind: HeadKind) -> MAVInference:
    return steered(varied_base(base), kind)


@cache
def bare(base: str) -> BaseModel:
    """A base, which no head was ever put into."""
    return varied_base(base)


@cache
def bare_answers(base: str) -> dict[tuple[str, str], Any]:
    """(mode, prompt) -> the tokens of the base's own `generate()`."""
    found = {}
    for mode, settings in PLAIN.items():
        for prompt in PROMPTS:
            with torch.random.fork_rng():
                torch.manual_seed(5)
                ids = prompt_tokens(made(base, "mlp"), prompt)
                found[mode, prompt] = plain_generate(
                    bare(base), ids, max_new_tokens=NEW, **settings
                )
    return found


# Made once, as sweeps do not ask for one base after the other.
@pytest.fixture(params=[*STEERED[:-1], pytest.param(STEERED[-1], marks=pytest.mark.slow)])
def mav(request: pytest.FixtureRequest) -> MAVInference:
    base, kind = request.param.split()
    return made(base, kind)


@pytest.fixture
def base_name(mav: MAVInference) -> str:
    return next(
        name for name in BASES if mav.base.config.model_type == bare(name).config.model_type
    )


@pytest.fixture
def untouched(base_name: str) -> BaseModel:
    return bare(base_name)


@pytest.fixture
def plain_answers(base_name: str) -> dict[tuple[str, str], Any]:
    return bare_answers(base_name)


def decoding(mode: str, cache_implementation: str = "dynamic", **more: Any) -> GenerationOptions:
    return GenerationOptions(
        **{
            "max_new_tokens": NEW,
            "cache_implementation": cache_implementation,
            **MODES[mode],
            **more,
        }
    )


def prompt_tokens(mav: MAVInference, prompt: str) -> list[int]:
    form = mav.joined.form
    return form.tokens(form.render(prompt))


def said(answers: list[Generation]) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in answers]


@sweep({"mav": STEERED, "mode": MODES, "cache_implementation": CACHES}, indirect=["mav"])
def test_alpha_zero_is_the_untouched_base(
    mav: MAVInference,
    plain_answers: dict[tuple[str, str], Any],
    mode: str,
    cache_implementation: str,
) -> None:
    for prompt in PROMPTS:
        want = plain_answers[mode, prompt]
        assert mav.generate(prompt, 0.0, decoding(mode, cache_implementation)).tokens == want
        assert mav.generate(prompt, ALPHA, decoding(mode, cache_implementation)).tokens != want


@sweep(
    {"mav": STEERED, "mode": ["greedy", "beams"], "cache_implementation": CACHES}, indirect=["mav"]
)
def test_a_batch_is_its_prompts_one_by_one(
    mav: MAVInference, mode: str, cache_implementation: str
) -> None:
    how = decoding(mode, cache_implementation)
    alone = [mav.generate(prompt, alpha, how) for prompt, alpha in zip(PROMPTS, EACH, strict=True)]
    together = mav.generate_batch(PROMPTS, EACH, how)
    assert said(together) == said(alone)
    assert [one.response for one in together] == [one.response for one in alone]
    # Each by its own strength: another request's would have given another answer.
    others = mav.generate_batch(PROMPTS, EACH[1:] + EACH[:1], how)
    assert all(mine != theirs for mine, theirs in zip(said(together), said(others), strict=True))


@sweep({"mav": STEERED, "mode": MODES, "alpha": [ALPHA, FALLING]}, indirect=["mav"])
def test_caches_change_nothing(mav: MAVInference, mode: str, alpha: Alpha) -> None:
    found = {
        cache_implementation: mav.generate(
            PROMPTS[1], alpha, decoding(mode, cache_implementation)
        ).tokens
        for cache_implementation in CACHES
    }
    assert len(set(found.values())) == 1, found


@sweep(
    {
        "mav": STEERED,
        "cache_implementation": CACHES,
        "alpha": [0.0, ALPHA, FALLING, RISING],
    },
    indirect=["mav"],
)
def test_step_by_step_is_one_pass_over_the_whole_text(
    mav: MAVInference, untouched: BaseModel, cache_implementation: str, alpha: Alpha
) -> None:
    for prompt in PROMPTS:
        new = list(mav.generate(prompt, alpha, decoding("greedy", cache_implementation)).tokens)
        ids = prompt_tokens(mav, prompt)
        assert new == whole_text_choices(mav, untouched, ids, new, alpha)


def test_strengths_by_request_and_position_in_one_pass(
    mav: MAVInference, untouched: BaseModel
) -> None:
    """What scores whole texts under a schedule: alpha [R, T], with left padding or without."""
    text = torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(3))
    alpha = torch.linspace(-3, 5, 22).reshape(2, 11)
    with mav.exclusive() as aligned, torch.no_grad(), aligned.steering(alpha):
        got = mav.base.model(text, use_cache=False).logits
    for row in range(2):
        want = whole_text_logits(mav, untouched, text[row : row + 1], alpha[row])
        torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("returned", [1, 3])
def test_beams_and_several_answers_a_request_in_the_users_own_generate(
    mav: MAVInference, returned: int
) -> None:
    """Rows that transformers multiplies keep the strength of their request."""
    ids = [prompt_tokens(mav, prompt) for prompt in PROMPTS[:2]]
    width = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(one)) + one for one in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids]),
    }
    settings = {
        "num_beams": 3,
        "num_return_sequences": returned,
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
    }
    with mav.steering([ALPHA, -ALPHA]) as model:
        together = model.generate(**inputs, **settings)[:, width:]
    for row, alpha in enumerate((ALPHA, -ALPHA)):
        with mav.steering(alpha) as model:
            one = torch.tensor([ids[row]])
            alone = model.generate(one, attention_mask=torch.ones_like(one), **settings)
        mine = together[row * returned : (row + 1) * returned]
        assert torch.equal(mine, alone[:, len(ids[row]) :])
    assert together.shape == (2 * returned, 8)


def test_sampled_answers_of_one_request_differ_and_are_steered(mav: MAVInference) -> None:
    ids = torch.tensor([prompt_tokens(mav, "Hi")])
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "top_k": 0}
    found = []
    for alpha in (ALPHA, 0.0):
        torch.manual_seed(2)
        with mav.steering(alpha) as model:
            found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **settings))
    assert len({tuple(row) for row in found[0].tolist()}) == 3
    assert not torch.equal(found[0][:, : found[1].shape[1]], found[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_answer_and_leaves_the_random_state(
    mav: MAVInference, mode: str
) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = mav.generate("Hi", ALPHA, decoding(mode, seed=3)).tokens
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert mav.generate("Hi", ALPHA, decoding(mode, seed=3)).tokens == first


def test_other_seeds_give_other_answers(mav: MAVInference) -> None:
    found = {mav.generate("Hi", ALPHA, decoding("sampling", seed=seed)).tokens for seed in range(4)}
    assert len(found) == 4
