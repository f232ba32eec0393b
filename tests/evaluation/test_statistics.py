"""Intervals of reported figures."""

import math

import pytest
import torch

from mav.pipeline.evaluation.statistics import mean_interval, wilson


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (8, 10), (500, 1000)])
def test_wilson_bounds_are_where_the_score_test_turns(successes: int, trials: int) -> None:
    share = successes / trials
    for bound in wilson(successes, trials):
        score = abs(share - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert score == pytest.approx(1.959964)


def test_mean_interval() -> None:
    mean, interval = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert mean == 2.5
    assert interval == pytest.approx((2.5 - half, 2.5 + half))
    assert mean_interval(torch.tensor([7.0])) == (7.0, None)


def test_mean_interval_of_narrow_values_is_taken_in_float64() -> None:
    mean, interval = mean_interval(torch.tensor([1e8, 1e8 + 8, 1e8 + 16], dtype=torch.float32))
    assert mean == 1e8 + 8
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 1.959964 * 8 / math.sqrt(3))
