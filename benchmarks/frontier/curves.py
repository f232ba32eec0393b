"""Curves of gold reward against KL: points, intervals, interpolation, best-of-n.

Prompts are the sample. Where a method was trained with several seeds, a prompt counts with its mean
over them, so intervals speak of the mean over these seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_RESAMPLES: Final = 2000
_TAILS: Final = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a policy of one strength does.

    Attributes:
        strength: Its strength.
        reward: Gold reward by prompt, float64 [prompts].
        kl: KL of the answer by prompt, float64 [the first so many], in nats.
    """

    strength: float
    reward: Values
    kl: Values


def point_of(lines: Sequence[dict[str, Any]]) -> Point:
    """Return the point of a strength from the lines of its seeds."""
    return Point(
        strength=lines[0]["run"]["strength"],
        reward=np.mean([line["reward"] for line in lines], axis=0),
        kl=np.mean([line["kl"] for line in lines], axis=0),
    )


def interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean, by the percentiles of 2,000 resamples.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
    """
    low, high = np.percentile(resampled(values, seed), _TAILS)
    return float(low), float(high)


def resampled(values: Values, seed: int = 0) -> Values:
    """Return the means of 2,000 samples with replacement; the same prompts for the same seed."""
    draws = np.random.default_rng(seed).integers(0, len(values), (_RESAMPLES, len(values)))
    means: Values = values[draws].mean(axis=1)
    return means


def reward_at(kl: float, kls: Values, rewards: Values) -> float | None:
    """Return the reward at a KL, linear between neighbours; None beyond the farthest point.

    Args:
        kl: Nats.
        kls: KL of the points, [points], one of them 0.
        rewards: Their rewards.
    """
    order = np.argsort(kls, kind="stable")
    if kl > kls[order[-1]]:
        return None
    return float(np.interp(kl, kls[order], rewards[order]))


def reward_with_interval(
    kl: float, points: Sequence[Point]
) -> tuple[float, tuple[float, float] | None] | None:
    """Return the interpolated reward at a KL and its bootstrap interval.

    Rewards and KLs are resampled over prompts, all points with the same prompts. There is no
    interval where a resampled curve in forty or more ends before this KL.

    Args:
        kl: Nats.
        points: The curve, the base at KL 0 among its points.

    Returns:
        None if the curve does not reach this KL.
    """
    means = np.array([[p.kl.mean() for p in points], [p.reward.mean() for p in points]])
    found = reward_at(kl, *means)
    if found is None:
        return None
    return found, _bounds(_resampled_at(kl, points))


def difference_with_interval(
    kl: float, points: Sequence[Point], others: Sequence[Point]
) -> tuple[float, tuple[float, float] | None] | None:
    """Return how much more reward a curve has at a KL than another, and the bootstrap interval.

    Both are resampled with the same prompts, so that what is hard or easy about a prompt drops out.

    Args:
        kl: Nats.
        points: The curve, the base at KL 0 among its points.
        others: The other curve, on the same prompts.

    Returns:
        None if one of them does not reach this KL; an interval as `reward_with_interval` has it.
    """
    ours, theirs = reward_with_interval(kl, points), reward_with_interval(kl, others)
    if ours is None or theirs is None:
        return None
    again = [
        None if a is None or b is None else a - b
        for a, b in zip(_resampled_at(kl, points), _resampled_at(kl, others), strict=True)
    ]
    return ours[0] - theirs[0], _bounds(again)


def _resampled_at(kl: float, points: Sequence[Point]) -> list[float | None]:
    kls = np.stack([resampled(p.kl, 1) for p in points], axis=1)
    rewards = np.stack([resampled(p.reward) for p in points], axis=1)
    return [reward_at(kl, *both) for both in zip(kls, rewards, strict=True)]


def _bounds(again: Sequence[float | None]) -> tuple[float, float] | None:
    reached = [value for value in again if value is not None]
    if len(again) - len(reached) >= len(again) * _TAILS[0] / 100:
        return None
    low, high = np.percentile(reached, _TAILS)
    return float(low), float(high)


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, the KL of the best of n answers, in nats.

    It is exact where no two answers have the same reward, and an upper bound otherwise (Beirami
    et al. 2024, "Theoretical guarantees on the best-of-n alignment policy").
    """
    return math.log(n) - (n - 1) / n


def best_of_n_reward(rewards: Values, n: int) -> Values:
    """Return the expected reward of the best of n answers by prompt, float64 [prompts].

    Every subset of n of an answer's N siblings counts alike, so nothing is drawn: the r-th smallest
    is the largest of C(r - 1, n - 1) subsets out of C(N, n).

    Args:
        rewards: [prompts, N], N at least n.
        n: How many the best is taken of.
    """
    total = rewards.shape[1]
    weights = [math.comb(rank, n - 1) / math.comb(total, n) for rank in range(total)]
    best: Values = np.sort(rewards, axis=1) @ np.array(weights)
    return best


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return Spearman's rank correlation; tied values share their mean rank."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (xs, ys)]
    matrix: Values = np.asarray(np.corrcoef(ranks))
    return float(matrix[0, 1])


def _ranks(values: Values) -> Values:
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    ranks: Values = below + (equal - 1) / 2
    return ranks
