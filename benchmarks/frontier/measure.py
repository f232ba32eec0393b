"""Measures a method: its curve, its ranking accuracy and its time per token, line by line."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch

from benchmarks.frontier.curves import best_of_n_kl, best_of_n_reward
from benchmarks.frontier.methods import BASE, BEST_OF_N, Method
from benchmarks.frontier.policies import Policy, plain
from benchmarks.frontier.results import Results, Run
from benchmarks.frontier.sampling import answer_logprobs, sample, sequence_kl
from benchmarks.frontier.stages import World
from benchmarks.frontier.summary import chosen_setting
from benchmarks.frontier.trained import ensure_trained
from benchmarks.frontier.tuning import correlation_with_reward
from benchmarks.synthetic import say

_SAMPLING_SEED: Final = 1000
"""Added to a run's seed, so that no answer is one that pairs were made of."""
_ROUNDS: Final = 4
_TIMED_TOKENS: Final = 12
_DIGITS: Final = 4


def run_method(
    world: World,
    results: Results,
    method: Method,
    seed: int,
    *,
    tune: bool,
    report: bool = True,
) -> None:
    """Run what is missing of a method: settings on tuning prompts if asked, then the rest.

    Args:
        world: Base and pairs.
        results: Where lines are kept.
        method: The method.
        seed: Seed of training and sampling.
        tune: Whether to run its whole grid on the tuning prompts first.
        report: Whether to run anything on the held-out prompts.
    """
    if method is BEST_OF_N:
        if report:
            _run_best_of_n(world, results, seed)
        return
    if tune and method.learns and method.ranks_at is not None:
        for rate in method.rates:
            _run_correlation(world, results, method, rate, seed)
    if not report:
        return
    setting = chosen_setting(results, world.sizes, method)
    _run_curve(world, results, method, setting, seed)
    if method.ranks_at is not None:
        _run_ranking(world, results, method, setting, seed)
    if method is not BASE:
        _run_time(world, results, method, setting, seed)


def _folder(world: World, method: Method, setting: float | None, seed: int) -> Path:
    if method.train is None or method.trained is None:
        return world.place.work
    return ensure_trained(world, method.trained, method.train, setting, seed)[0]


def _run_curve(
    world: World, results: Results, method: Method, setting: float | None, seed: int
) -> None:
    runs = [
        Run(
            kind="curve",
            method=method.name,
            setting=setting,
            strength=strength,
            seed=seed,
            sizes=world.sizes,
        )
        for strength in method.strengths
    ]
    missing = [run for run in runs if results.get(run) is None]
    if not missing:
        return
    folder = _folder(world, method, setting, seed)
    prompts = world.prompts("held-out")
    measured = min(world.sizes.kl_prompts, len(prompts))
    with (
        method.open(world, world.base, folder) as native,
        method.open(world, world.wide, folder) as wide,
    ):
        for run in missing:
            say(f"{method.name}, {method.means or 'strength'} {run.strength:g}")
            policy = native(run.strength)
            answers = sample(policy, prompts, world.sizes.new_tokens, _SAMPLING_SEED + seed)
            kl = torch.zeros(measured, dtype=torch.float64)
            if method is not BASE:
                kl = sequence_kl(
                    wide(run.strength),
                    plain(world.wide, world.form),
                    prompts[:measured],
                    answers[:measured],
                )
            rewards = [world.reward(text) for text in world.texts(answers)]
            found = {
                "reward": [round(value, _DIGITS) for value in rewards],
                "kl": [round(value, _DIGITS) for value in kl.tolist()],
                "tokens": [len(answer) for answer in answers],
                **_trained(world, method, setting, seed),
            }
            results.add(run, found)
            say(
                f"{method.name} at {run.strength:g}: reward {statistics.fmean(rewards):.3f}, "
                f"KL {float(kl.mean()):.2f} nats"
            )


def _run_correlation(
    world: World, results: Results, method: Method, setting: float, seed: int
) -> None:
    assert method.ranks_at is not None
    run = Run(
        kind="correlation",
        method=method.name,
        setting=setting,
        strength=method.ranks_at,
        seed=seed,
        part="tuning",
        sizes=world.sizes,
    )
    if results.get(run) is not None:
        return
    folder = _folder(world, method, setting, seed)
    with method.open(world, world.base, folder) as at:
        found = correlation_with_reward(world, at(method.ranks_at))
    results.add(run, {**found, **_trained(world, method, setting, seed)})
    say(f"{method.name}, rate {setting:g}: correlation {found['correlation']:.3f}")


def _trained(world: World, method: Method, setting: float | None, seed: int) -> dict[str, Any]:
    """Return what training took, for the line of a run."""
    if method.train is None or method.trained is None:
        return {}
    return {"training": ensure_trained(world, method.trained, method.train, setting, seed)[1]}


def _run_best_of_n(world: World, results: Results, seed: int) -> None:
    sizes = world.sizes
    counts = [int(n) for n in BEST_OF_N.strengths if n <= sizes.of_n]
    runs = {
        n: Run(kind="curve", method=BEST_OF_N.name, strength=float(n), seed=seed, sizes=sizes)
        for n in counts
    }
    if all(results.get(run) is not None for run in runs.values()):
        return
    prompts = world.prompts("held-out")[: sizes.of_n_prompts]
    asked = [prompt for prompt in prompts for _ in range(sizes.of_n)]
    say(f"best-of-n: {sizes.of_n} answers to each of {len(prompts)} prompts")
    policy = plain(world.base, world.form)
    texts = world.texts(sample(policy, asked, sizes.new_tokens, _SAMPLING_SEED + seed))
    rewards = torch.tensor([world.reward(text) for text in texts], dtype=torch.float64)
    table = rewards.reshape(len(prompts), sizes.of_n).numpy()
    for n, run in runs.items():
        if results.get(run) is None:
            best = best_of_n_reward(table, n)
            found = {
                "reward": [round(value, _DIGITS) for value in best.tolist()],
                "kl": [round(best_of_n_kl(n), _DIGITS)] * len(prompts),
            }
            results.add(run, found)


def _run_ranking(
    world: World, results: Results, method: Method, setting: float | None, seed: int
) -> None:
    """Measure the share of held-out pairs whose chosen answer gains more over the base."""
    assert method.ranks_at is not None
    run = Run(
        kind="ranking",
        method=method.name,
        setting=setting,
        strength=method.ranks_at,
        seed=seed,
        sizes=world.sizes,
    )
    if results.get(run) is not None:
        return
    folder = _folder(world, method, setting, seed)
    prompts, chosen, rejected = world.ranking_pairs()
    with method.open(world, world.base, folder) as at:
        policy = at(method.ranks_at)
        gains = [
            answer_logprobs(policy, prompts, answers) - base
            for answers, base in zip((chosen, rejected), world.ranking_base, strict=True)
        ]
    correct = (gains[0] > gains[1]).double()
    results.add(run, {"pairs": len(correct), "accuracy": round(float(correct.mean()), _DIGITS)})


def _run_time(
    world: World, results: Results, method: Method, setting: float | None, seed: int
) -> None:
    run = Run(
        kind="time",
        method=method.name,
        setting=setting,
        strength=method.strengths[1],
        seed=seed,
        sizes=world.sizes,
    )
    if results.get(run) is not None:
        return
    folder = _folder(world, method, setting, seed)
    prompts = world.prompts("held-out")[:_ROUNDS]
    with (method.timed or method.open)(world, world.base, folder) as at:
        ratio = time_over_base(at(run.strength), plain(world.base, world.form), prompts)
    results.add(run, {"time_over_base": round(ratio, 3), "rounds": len(prompts)})


def time_over_base(policy: Policy, base: Policy, prompts: Sequence[str]) -> float:
    """Return processor time per token over the base's: the median of rounds, one prompt each.

    Policy and base take turns; one prompt at a time, its reading included, 12 tokens.
    """
    ratios = []
    for number, prompt in enumerate([prompts[0], *prompts]):
        rates = []
        for one in (policy, base):
            started = process_time()
            (answer,) = sample(one, [prompt], _TIMED_TOKENS, number)
            rates.append((process_time() - started) / len(answer))
        ratios.append(rates[0] / rates[1])
    return statistics.median(ratios[1:])  # the first warms up
