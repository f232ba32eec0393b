"""What the frontier chooses rates by."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.frontier import tuning
from benchmarks.frontier.policies import Policy, plain
from benchmarks.frontier.settings import Place, Sizes
from benchmarks.frontier.stages import World
from benchmarks.frontier.tuning import correlation_with_reward, within_prompts
from mav.pipeline.preferences.prompt_format import PromptFormat
from tests.support.models.tiny import tiny_base

SIZES = Sizes(
    base="tiny", tuning_prompts=3, held_out_prompts=1, kl_prompts=1, ranking_prompts=1,
    of_n_prompts=1, new_tokens=5,
)  # fmt: skip


def test_near_the_base_the_correlation_gives_the_gain_at_a_kl() -> None:
    """Two prompts, every answer listed with its probability; the policy is computed exactly."""
    draws = np.random.default_rng(0)
    rewards, changes = draws.normal(size=(2, 2, 500))
    strength = 1e-3
    weights = np.exp(strength * changes)
    policy = weights / weights.sum(axis=1, keepdims=True)
    gain = float(((policy - 1 / 500) * rewards).sum(axis=1).mean())
    kl = float((policy * np.log(policy * 500)).sum(axis=1).mean())
    deviation = float(np.sqrt(rewards.var(axis=1).mean()))
    expected = within_prompts(rewards, changes) * deviation * math.sqrt(2 * kl)
    assert gain == pytest.approx(expected, rel=0.01)


def test_what_differs_between_prompts_alone_does_not_count() -> None:
    rewards = np.array([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]])
    assert within_prompts(rewards, np.array([[5.0, 6.0, 7.0], [-5.0, -4.0, -3.0]])) == (
        pytest.approx(1)
    )
    assert within_prompts(rewards, -rewards) == pytest.approx(-1)
    assert within_prompts(rewards, np.ones((2, 3))) == 0


def gain_of(world: World, policy: Policy, prompt: str, answer: list[int]) -> float:
    """The sum over tokens, each from a pass of its own."""
    total, before = 0.0, world.form.tokens(world.form.render(prompt))
    for place, token in enumerate(answer):
        ids = torch.tensor([before + answer[:place]])
        logs = [
            model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            for model in (policy.models[0][0], world.base.model)
        ]
        ratio = logs[0] - logs[1]
        total += float(ratio[token] - (logs[1].exp() * ratio).sum())
    return total


@torch.inference_mode()
def test_answers_are_sampled_once_and_scored_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(SIZES, Place(work=tmp_path), "tiny")
    base_model = tiny_base()
    form = PromptFormat(name="hh", tokenizer=base_model.tokenizer)
    world.__dict__.update(base=base_model, form=form, reward=lambda text: float(len(text)))
    policy = plain(tiny_base(seed=1), world.form)
    found = correlation_with_reward(world, policy)
    assert (found["prompts"], found["answers"]) == (3, 48)
    prompts, answers, rewards = tuning._answers_of_base(world)
    assert prompts[0] == prompts[15] == world.prompts("tuning")[0] != prompts[16]
    gains = np.array([gain_of(world, policy, *one) for one in zip(prompts, answers, strict=True)])
    blocks = [slice(at, at + 16) for at in (0, 16, 32)]
    parts = [
        [values[block] - values[block].mean() for block in blocks] for values in (rewards, gains)
    ]
    expected = np.corrcoef(np.concatenate(parts[0]), np.concatenate(parts[1]))[0, 1]
    assert found["correlation"] == pytest.approx(expected, abs=1e-4)
    assert correlation_with_reward(world, plain(world.base, world.form))["correlation"] == 0
    tuning._answers_of_base.cache_clear()
    monkeypatch.setattr(tuning, "sample", None)  # what was sampled is read
    assert correlation_with_reward(world, policy) == found
