"""Sampling by one's own seed: the right distribution, the right nucleus, nobody else's state."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.sampling import (
    SequenceSampler,
    choose_each,
    less_repeated,
    within_nucleus,
)

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.0, -3.0, 1.5])
DRAWS = 4000


def plain_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The most probable tokens, one by one, until they hold top_p."""
    kept: set[int] = set()
    held = 0.0
    for token in sorted(range(len(probabilities)), key=lambda at: -probabilities[at]):
        if held >= top_p:
            break
        kept.add(token)
        held += probabilities[token]
    return kept


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * counts.sum()
    inside = expected > 0
    assert not counts[~inside].any()
    return float(((counts - expected)[inside] ** 2 / expected[inside]).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.6, 0.9, 1.0])
def test_the_distribution(temperature: float, top_p: float) -> None:
    sampler = SequenceSampler(GenerationOptions(temperature=temperature, top_p=top_p, seed=7), CPU)
    drawn = torch.stack([sampler.choose(LOGITS) for _ in range(DRAWS)])
    counts = drawn.bincount(minlength=len(LOGITS))
    want = (LOGITS / temperature).softmax(-1)
    outside = sorted(set(range(len(LOGITS))) - plain_nucleus(want.tolist(), top_p))
    want[outside] = 0.0
    # With at most six degrees of freedom, by chance once in ten thousand seeds.
    assert chi_square(counts, want / want.sum()) < 28
    if top_p == 1:
        assert chi_square(counts, (LOGITS / (temperature * 1.3)).softmax(-1)) > 28


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True),
    st.floats(0.01, 1.0),
)
def test_the_nucleus_is_the_plain_one(weights: list[int], top_p: float) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64)
    probabilities /= probabilities.sum()
    got = within_nucleus(probabilities, top_p)
    want = plain_nucleus(probabilities.tolist(), top_p) if top_p < 1 else set(range(len(weights)))
    assert set(got.nonzero()[:, 0].tolist()) == want
    assert torch.equal(got[sorted(want)], probabilities[sorted(want)])


def test_the_nucleus_of_the_smallest_top_p_is_one_token() -> None:
    assert within_nucleus(LOGITS.softmax(-1), 1e-9).nonzero().tolist() == [[0]]


def test_no_temperature_takes_the_most_probable() -> None:
    assert SequenceSampler(GenerationOptions(), CPU).choose(LOGITS) == 0


def test_each_row_by_its_own_seed() -> None:
    def drawn(seeds: list[int]) -> list[list[int]]:
        samplers = [
            SequenceSampler(GenerationOptions(temperature=2.0, seed=seed), CPU) for seed in seeds
        ]
        return [choose_each(samplers, LOGITS.repeat(len(seeds), 1)) for _ in range(20)]

    together = drawn([3, 4, 3])
    assert [row[0] for row in together] == [row[0] for row in drawn([3])]
    assert [row[1] for row in together] == [row[0] for row in drawn([4])]
    assert [row[0] for row in together] == [row[2] for row in together]
    assert [row[0] for row in together] != [row[1] for row in together]


@pytest.mark.parametrize("seed", [None, 3])
def test_the_random_state_of_others_is_left_alone(seed: int | None) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    SequenceSampler(GenerationOptions(temperature=1.0, seed=seed), CPU).choose(LOGITS)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_seed_answers_differ() -> None:
    def answer() -> tuple[int, ...]:
        sampler = SequenceSampler(GenerationOptions(temperature=2.0), CPU)
        return tuple(int(sampler.choose(LOGITS)) for _ in range(20))

    assert len({answer() for _ in range(4)}) == 4


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 3}, {0, 6, 3}),
        ({"top_k": 7}, set(range(7))),
        ({"min_p": 0.3}, {0, 6, 3}),
        ({"top_k": 5, "top_p": 0.5}, {0, 6}),
        ({"top_k": 3, "min_p": 0.5}, {0, 6}),
    ],
    ids=str,
)
def test_only_what_the_settings_leave_is_drawn(settings: dict[str, Any], kept: set[int]) -> None:
    sampler = SequenceSampler(GenerationOptions(temperature=1.0, seed=3, **settings), CPU)
    assert {int(sampler.choose(LOGITS)) for _ in range(DRAWS)} == kept


def test_repetition_is_counted_from_the_prompt_on_as_transformers_does() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    there = [2, 0, 0, 6]
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([there]), LOGITS[None].clone())[0]
    assert torch.equal(less_repeated(LOGITS, sorted(set(there)), 1.7), want)
    sampler = SequenceSampler(GenerationOptions(repetition_penalty=1e6), CPU, prompt=[0])
    (first,) = choose_each([sampler], LOGITS[None])
    (second,) = choose_each([sampler], LOGITS[None])
    assert (first, second) == (6, 3)
