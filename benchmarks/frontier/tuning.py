"""What a rate is chosen by: how a policy's log-ratio goes with the reward of the base's answers.

Of policies in proportion to pi_base exp(s A), with a small s, the reward rises by s Cov(reward, A)
and the KL by s^2 Var(A) / 2, both over the base's own answers to a prompt. At k nats it has
therefore risen by

    correlation(reward, A) * sd(reward) * sqrt(2 k),

so of two policies near the base the one of the higher correlation is the better at any KL. A is
the sum over an answer's tokens of

    log pi(y_t) - log pi_base(y_t) + KL(pi_base || pi) at t,

the last of which takes off what the log-ratio is expected to be there: a policy some way from the
base pays it at every token, whatever the token is. That takes one teacher-forced pass. The answers
are the same for all methods and settings; there are several times more of them than a curve has
prompts, and a setting needs no sampling of its own.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from benchmarks.frontier.curves import Values
from benchmarks.frontier.policies import Policy, plain
from benchmarks.frontier.sampling import centred_gains, sample
from benchmarks.frontier.stages import World
from benchmarks.synthetic import say

ANSWERS_EACH: Final = 16
"""Answers to each tuning prompt."""
_SEED: Final = 777
"""Of these answers; those of pairs and of curves have others."""


def correlation_with_reward(world: World, policy: Policy) -> dict[str, Any]:
    """Return the correlation of what a policy gains, A, with the gold reward, within prompts.

    Args:
        world: Base, prompts and reward.
        policy: The policy, at the strength A is taken at.

    Returns:
        `correlation`, and the counts of `prompts` and `answers` that it stands on.
    """
    prompts, answers, rewards = _answers_of_base(world)
    gains = centred_gains(policy, plain(world.base, world.form), prompts, answers).numpy()
    shape = (-1, ANSWERS_EACH)
    found = within_prompts(rewards.reshape(shape), gains.reshape(shape))
    return {
        "correlation": round(found, 4),
        "prompts": len(prompts) // ANSWERS_EACH,
        "answers": len(prompts),
    }


def within_prompts(rewards: Values, gains: Values) -> float:
    """Return the correlation of two quantities after each prompt's mean is taken off.

    Args:
        rewards: [prompts, answers].
        gains: [prompts, answers].

    Returns:
        From -1 to 1; 0 where one of them is the same for all answers to a prompt.
    """
    centred = [values - values.mean(axis=1, keepdims=True) for values in (rewards, gains)]
    sizes = [float(np.sqrt((values**2).sum())) for values in centred]
    if not all(sizes):
        return 0.0
    return float((centred[0] * centred[1]).sum() / (sizes[0] * sizes[1]))


@lru_cache(maxsize=1)
def _answers_of_base(world: World) -> tuple[Sequence[str], list[list[int]], Values]:
    """Return prompts, answers and rewards, one of each an answer."""
    prompts = [text for text in world.prompts("tuning") for _ in range(ANSWERS_EACH)]
    policy = plain(world.base, world.form)
    path = world.place.work / "answers-tuning.json"
    if not path.is_file():
        say(f"{ANSWERS_EACH} answers of the base to each tuning prompt")
        drawn = sample(policy, prompts, world.sizes.new_tokens, _SEED)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(drawn) + "\n", encoding="utf-8")
        part.replace(path)
    answers: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
    rewards = np.array([world.reward(text) for text in world.texts(answers)])
    return prompts, answers, rewards
