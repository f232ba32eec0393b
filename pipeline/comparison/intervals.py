"""Estimates with 95 % intervals: percentile bootstrap over prompts.

Prompts are the sample, drawn again with replacement; the interval is from the 2.5th to the 97.5th
percentile of the estimate over the draws. Source: Efron and Tibshirani 1993, "An Introduction to
the Bootstrap", chapter 13. Draws come from a fixed seed, so results are reproducible. Missing
values, None or not finite, are left out (together with the value they are paired with), and an
estimate counts them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.pipeline.evaluation.statistics import wilson

Values = Sequence[float | None]
Floats = NDArray[np.float64]
Places = NDArray[np.int64]
"""Indices of the drawn prompts, [D, N]."""
Statistic = Callable[[Places], Floats]
"""One value per draw, [D]."""

DRAWS: Final = 4000
"""Bootstrap draws per interval."""
_SEED: Final = 0
_PERCENTILES: Final = (2.5, 97.5)
_AT_ONCE: Final = 1 << 20
"""Most values drawn at once, to bound memory."""
_RIDGE: Final = np.array([1e-6, 1.0])
"""Penalty of the coefficients a and b; see `length_controlled_win_rate`."""
_MOST_STEPS: Final = 30
_CONVERGED: Final = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The estimate; None without any values.
        low: Lower end of the interval; None for fewer than two values.
        high: Upper end, likewise.
        n: Number of values, or pairs, it is based on.
        missing: Number of values, or pairs, that were missing.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    missing: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; unknown ones are null."""
        return dataclasses.asdict(self)


def mean_interval(values: Values) -> Estimate:
    """Return the mean of one value per prompt."""
    (kept,), missing = _present(values)
    return _estimate(_mean_of(kept), len(kept), missing)


def paired_difference(values: Values, reference: Values) -> Estimate:
    """Return the mean of value - reference, prompt by prompt.

    Raises:
        ValueError: The numbers of values differ.
    """
    (kept, against), missing = _present(values, reference)
    return _estimate(_mean_of(kept - against), len(kept), missing)


def win_rate(values: Values, reference: Values) -> Estimate:
    """Return the share of prompts whose value exceeds the reference's, ties counting half.

    See `mean_result` for the interval.

    Raises:
        ValueError: The numbers of values differ.
    """
    (kept, against), missing = _present(values, reference)
    wins = (kept > against) + 0.5 * (kept == against)
    return _of_results(_mean_of(wins), wins, missing)


def mean_result(results: Values) -> Estimate:
    """Return the mean of results, each from 0 for a loss over 0.5 for a tie to 1 for a win.

    If all results are equal, so are all draws; then the interval is Wilson's.
    """
    (kept,), missing = _present(results)
    return _of_results(_mean_of(kept), kept, missing)


def length_controlled_win_rate(wins: Values, length_differences: Values) -> Estimate:
    """Return the win rate expected if answers were as long as the reference's.

    With w the result and d the difference of lengths at a prompt, this fits

        P(w) = sigmoid(a + b * tanh(d / s)),    s the root mean square of d,

    by maximum likelihood with the penalties b^2 / 2 and a^2 * 5e-7; the latter keeps a finite when
    one side always wins. The estimate is sigmoid(a), without the term of length. If lengths are
    equal it is the plain win rate. Draws use the s of all prompts.

    Adapted from AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval"). Theirs has a
    third term for the difficulty of an instruction, which is fitted over all systems of their
    leaderboard and thus unknown for other prompts; it divides d by its standard deviation and
    regularises differently. The figures are not comparable with theirs.

    Args:
        wins: A result for each prompt, as `mean_result` takes them.
        length_differences: Length of the answer minus that of the reference's, in any unit.

    Raises:
        ValueError: The numbers of values differ.
    """
    (kept, differences), missing = _present(wins, length_differences)
    scale = math.sqrt(float((differences**2).sum()) / max(1, len(kept)))
    lengths = np.tanh(differences / scale) if scale > 0 else np.zeros_like(differences)

    def controlled(places_DN: Places) -> Floats:
        return _sigmoid(_fit(kept[places_DN], lengths[places_DN])[:, 0])

    return _of_results(controlled, kept, missing)


def _fit(wins_DN: Floats, lengths_DN: Floats) -> Floats:
    """Return the coefficients a and b of D samples of N prompts, [D, 2].

    Newton's method from zero; takes about 20 steps if one side always wins, otherwise 5.
    """
    found_D2 = np.zeros((len(wins_DN), 2))
    design_DN2 = np.stack([np.ones_like(lengths_DN), lengths_DN], axis=-1)
    for _ in range(_MOST_STEPS):
        expected_DN = _sigmoid(found_D2[:, :1] + found_D2[:, 1:] * lengths_DN)
        weighted_DN2 = (expected_DN * (1 - expected_DN))[..., None] * design_DN2
        gradient_D2 = ((wins_DN - expected_DN)[..., None] * design_DN2).sum(1) - _RIDGE * found_D2
        curvature_D22 = design_DN2.swapaxes(1, 2) @ weighted_DN2 + np.diag(_RIDGE)
        step_D2 = np.linalg.solve(curvature_D22, gradient_D2[..., None])[..., 0]
        found_D2 += step_D2
        if float(np.abs(step_D2).max()) < _CONVERGED:
            break
    return found_D2


def _sigmoid(logits: Floats) -> Floats:
    values: Floats = 0.5 * (1 + np.tanh(0.5 * logits))  # unlike exp, tanh does not overflow
    return values


def _present(*columns: Values) -> tuple[list[Floats], int]:
    """Return columns without prompts that lack a finite value, and the number of these prompts."""
    if len({len(column) for column in columns}) > 1:
        counts = " and ".join(str(len(column)) for column in columns)
        raise ValueError(f"got {counts} values, expected one of each for every prompt")
    table = np.array(columns, dtype=np.float64).reshape(len(columns), -1)  # None becomes NaN
    whole = np.isfinite(table).all(axis=0)
    return [*table[:, whole]], int((~whole).sum())


def _mean_of(values: Floats) -> Statistic:
    def mean(places_DN: Places) -> Floats:
        means: Floats = values[places_DN].mean(axis=1)
        return means

    return mean


def _of_results(statistic: Statistic, results: Floats, missing: int) -> Estimate:
    """Return the estimate of a statistic of results that lie from 0 to 1."""
    estimate = _estimate(statistic, len(results), missing)
    if len(results) < 2 or np.ptp(results) > 0:
        return estimate
    low, high = wilson(float(results.sum()), len(results))
    return dataclasses.replace(estimate, low=low, high=high)


def _estimate(statistic: Statistic, n: int, missing: int) -> Estimate:
    """Return a statistic of n prompts with its interval."""
    if n == 0:
        return Estimate(None, None, None, 0, missing)
    value = float(statistic(np.arange(n)[None])[0])
    if n == 1:
        return Estimate(value, None, None, 1, missing)
    draws = np.concatenate([statistic(places_DN) for places_DN in _drawn(n)])
    low, high = np.percentile(draws, _PERCENTILES).tolist()
    return Estimate(value, low, high, n, missing)


def _drawn(n: int) -> Iterator[Places]:
    """Yield all draws of n prompts, in batches that bound memory."""
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _AT_ONCE // n)
    for start in range(0, DRAWS, at_once):
        yield generator.integers(n, size=(min(at_once, DRAWS - start), n))
