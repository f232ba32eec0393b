"""Estimates and their intervals, beside plain loops."""

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.pipeline.comparison.intervals import (
    DRAWS,
    Estimate,
    length_controlled_win_rate,
    mean_interval,
    mean_result,
    paired_difference,
    win_rate,
)
from mav.pipeline.evaluation.statistics import wilson

VALUES = st.none() | st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf, 0.0, 1.0])


def some(count: int, seed: int, low: float = -2.0, high: float = 3.0) -> list[float]:
    generator = random.Random(seed)
    return [generator.uniform(low, high) for _ in range(count)]


def plain_bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    generator = random.Random(seed)
    means = sorted(statistics.fmean(generator.choices(values, k=len(values))) for _ in range(DRAWS))
    return means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS)]


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))


def plain_fit(wins: Sequence[float], lengths: Sequence[float], scale: float) -> float:
    """The length-controlled rate by L-BFGS on the objective as it is documented."""
    x = torch.tensor([math.tanh(d / scale) for d in lengths], dtype=torch.float64)
    w = torch.tensor(wins, dtype=torch.float64)
    a, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    solver = torch.optim.LBFGS([a, b], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def loss() -> torch.Tensor:
        solver.zero_grad()
        p = torch.sigmoid(a + b * x)
        value = -(w * p.log() + (1 - w) * (1 - p).log()).sum() + b * b / 2 + a * a * 5e-7
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return torch.sigmoid(a).item()


def test_a_mean_and_its_interval() -> None:
    values = some(120, seed=1)
    found = mean_interval(values)
    assert found.value == pytest.approx(statistics.fmean(values))
    assert (found.n, found.missing) == (120, 0)
    low, high = plain_bootstrap(values, seed=2)
    spread = statistics.stdev(values) / math.sqrt(120)
    # Both are random draws; their ends differ by a few hundredths of a standard error.
    assert found.low == pytest.approx(low, abs=0.15 * spread)
    assert found.high == pytest.approx(high, abs=0.15 * spread)
    assert mean_interval(values) == found


def test_the_interval_holds_the_mean_of_the_population_95_times_of_100() -> None:
    held = 0
    for seed in range(200):
        found = mean_interval(some(60, seed=seed))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
    assert 178 <= held <= 199  # 190 on average, within three standard deviations or so


def test_differences_are_taken_prompt_by_prompt() -> None:
    reference = some(80, seed=3, low=-100, high=100)
    values = [one + 0.5 + 0.01 * number for number, one in enumerate(reference)]
    found = paired_difference(values, reference)
    by_hand = mean_interval([a - b for a, b in zip(values, reference, strict=True)])
    assert found == by_hand
    assert found.value == pytest.approx(0.5 + 0.01 * 79 / 2)
    # The spread of prompts, a hundred times as large, has no part in it.
    assert found.low is not None
    assert found.low > 0.8


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_wins_ties_and_what_is_missing(pairs: list[tuple[float | None, float | None]]) -> None:
    wins, missing = [], 0
    for value, against in pairs:
        if (
            value is None
            or against is None
            or not math.isfinite(value)
            or not math.isfinite(against)
        ):
            missing += 1
        else:
            wins.append(1.0 if value > against else 0.5 if value == against else 0.0)
    found = win_rate([value for value, _ in pairs], [against for _, against in pairs])
    assert (found.n, found.missing) == (len(wins), missing)
    if wins:
        assert found.value == pytest.approx(statistics.fmean(wins))
    else:
        assert found == Estimate(None, None, None, 0, missing)
    if len(wins) > 1:
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.high <= 1
    else:
        assert found.low is found.high is None


def test_results_that_are_all_the_same_have_an_interval() -> None:
    assert win_rate([1.0] * 20, [0.0] * 20) == Estimate(1.0, *wilson(20, 20), 20)
    assert mean_result([0.5] * 20) == Estimate(0.5, *wilson(10, 20), 20)
    assert mean_result([0.25, 0.75, None]).value == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_length_control_beside_another_solver(seed: int) -> None:
    generator = random.Random(seed)
    lengths = [generator.gauss(20, 60) for _ in range(150)]
    # Longer answers win more often than their worth.
    wins = [
        generator.choice([0.5, float(generator.random() < 1 / (1 + math.exp(0.5 - d / 40)))])
        for d in lengths
    ]
    found = length_controlled_win_rate(wins, lengths)
    assert found.value == pytest.approx(
        plain_fit(wins, lengths, root_mean_square(lengths)), abs=1e-7
    )
    assert found.value is not None
    plain = mean_result(wins)
    assert plain.value is not None
    assert found.value < plain.value
    # Prompts doubled, the interval narrows by the square root of two.
    twice = length_controlled_win_rate(wins * 2, lengths * 2)
    widths = [one.high - one.low for one in (found, twice) if one.high and one.low]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(2), rel=0.1)


def test_an_interval_of_length_control_beside_a_loop() -> None:
    generator = random.Random(5)
    lengths = [generator.gauss(0, 30) for _ in range(60)]
    wins = [float(generator.random() < 1 / (1 + math.exp(-0.6 - d / 30))) for d in lengths]
    found = length_controlled_win_rate(wins, lengths)
    scale, rates = root_mean_square(lengths), []
    for _ in range(300):
        places = generator.choices(range(60), k=60)
        rates.append(plain_fit([wins[p] for p in places], [lengths[p] for p in places], scale))
    rates.sort()
    assert found.low == pytest.approx(rates[7], abs=0.03)
    assert found.high == pytest.approx(rates[292], abs=0.03)


def test_length_control_where_lengths_say_nothing() -> None:
    wins = [1.0, 0.0, 1.0, 1.0, 0.5]
    assert length_controlled_win_rate(wins, [0.0] * 5).value == pytest.approx(0.7, abs=1e-6)
    assert length_controlled_win_rate(wins, [7.0] * 5).value == pytest.approx(0.7, abs=1e-6)
    always = length_controlled_win_rate([1.0] * 30, some(30, seed=1))
    assert always.value == pytest.approx(1.0, abs=1e-4)
    assert (always.low, always.high) == wilson(30, 30)
    # Length alone tells who wins.
    lengths = some(200, seed=2, low=-1, high=1)
    wins = [float(d > 0) for d in lengths]
    assert length_controlled_win_rate(wins, lengths).value == pytest.approx(0.5, abs=0.1)
    assert length_controlled_win_rate([], []) == Estimate(None, None, None, 0)
    assert length_controlled_win_rate([1.0, None], [2.0, 1.0]).missing == 1


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 1 values"):
        paired_difference([1.0, 2.0], [1.0])


def test_json_has_null_for_what_is_unknown() -> None:
    assert mean_interval([3.0, math.nan]).to_json() == {
        "value": 3.0,
        "low": None,
        "high": None,
        "n": 1,
        "missing": 1,
    }


def test_many_prompts_are_drawn_in_parts_and_as_one() -> None:
    values = np.linspace(0, 1, 4000).tolist()  # more than are drawn at once
    found = mean_interval(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(4000)
    assert found.low == pytest.approx(0.5 - half, abs=0.1 * half)
    assert found.high == pytest.approx(0.5 + half, abs=0.1 * half)
