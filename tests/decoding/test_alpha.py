"""Strengths over an answer: what is read, what is written, and what lies between the points."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule, as_schedule
from mav.pipeline.decoding.steering.strengths import strength_for_each

STRENGTHS = st.floats(-1e6, 1e6)
SCHEDULES = st.dictionaries(st.integers(0, 10_000), STRENGTHS, min_size=1, max_size=6).map(
    lambda points: AlphaSchedule(tuple(sorted(points.items())))
)


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("1.5", ((0, 1.5),)),
        ("-2", ((0, -2.0),)),
        ("1e-3", ((0, 0.001),)),
        ("0:2,64:0.5", ((0, 2.0), (64, 0.5))),
        (" 3 : 1 , 5 : -1 ", ((3, 1.0), (5, -1.0))),
    ],
)
def test_what_is_read(text: str, points: tuple[tuple[int, float], ...]) -> None:
    assert AlphaSchedule.parse(text).points == points


@pytest.mark.parametrize(
    "text",
    ["", "strong", ":", "0:", ":1", "0:1:2", "0:1,", "0.5:1", "1,2", "0:1;4:2", "nan", "-inf"],
)
def test_what_is_no_strength(text: str) -> None:
    with pytest.raises(UsageError, match="expected a finite number such as"):
        AlphaSchedule.parse(text)


@pytest.mark.parametrize("text", ["-1:2", "4:1,4:2", "4:1,3:2", "0:1,-2:0"])
def test_tokens_that_do_not_ascend(text: str) -> None:
    with pytest.raises(UsageError, match="ascending tokens from 0"):
        AlphaSchedule.parse(text)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
def test_strengths_that_are_no_numbers(strength: float) -> None:
    with pytest.raises(UsageError, match="finite"):
        AlphaSchedule(((0, 1.0), (5, strength)))
    with pytest.raises(UsageError, match="finite"):
        AlphaSchedule.parse(f"0:1,5:{strength}")
    with pytest.raises(UsageError, match="finite"):
        as_schedule(strength)


def test_a_schedule_without_points_is_refused() -> None:
    with pytest.raises(UsageError, match="ascending tokens from 0"):
        AlphaSchedule(())


@given(SCHEDULES)
def test_what_is_written_is_read_as_the_same_strengths(schedule: AlphaSchedule) -> None:
    read = AlphaSchedule.parse(str(schedule))
    for token in {0, 1, 20_000, *(at + by for at, _ in schedule.points for by in (0, 1, 2))}:
        assert read.at(token) == schedule.at(token)


@given(SCHEDULES, st.integers(0, 20_000))
def test_between_points_the_strength_is_on_the_line(schedule: AlphaSchedule, token: int) -> None:
    points = schedule.points
    if token <= points[0][0]:
        want = points[0][1]
    elif token >= points[-1][0]:
        want = points[-1][1]
    else:
        left = max(point for point in points if point[0] <= token)
        right = min(point for point in points if point[0] > token)
        share = (token - left[0]) / (right[0] - left[0])
        want = (1 - share) * left[1] + share * right[1]
    assert math.isclose(schedule.at(token), want, rel_tol=1e-9, abs_tol=1e-6)


@given(SCHEDULES)
def test_at_a_point_the_strength_is_exactly_its_own(schedule: AlphaSchedule) -> None:
    assert [schedule.at(token) for token, _ in schedule.points] == [
        strength for _, strength in schedule.points
    ]


def test_the_docstrings_example() -> None:
    schedule = AlphaSchedule(((0, 2.0), (64, 0.5)))
    assert [schedule.at(token) for token in (0, 32, 64, 1000)] == [2.0, 1.25, 0.5, 0.5]
    assert str(schedule) == "0:2,64:0.5"
    assert not schedule.is_constant


@pytest.mark.parametrize("alpha", [2, 2.0, AlphaSchedule(((0, 2.0),))])
def test_a_number_is_a_schedule_that_never_changes(alpha: float | AlphaSchedule) -> None:
    schedule = as_schedule(alpha)
    assert schedule.is_constant
    assert str(schedule) == "2"
    assert {schedule.at(token) for token in (0, 1, 999)} == {2.0}


@pytest.mark.parametrize(
    "alpha", ["1.5", np.float32(1.5), np.array(1.5), torch.tensor(1.5), torch.tensor([1.5])]
)
def test_numbers_of_other_libraries_are_numbers(alpha: Any) -> None:
    assert as_schedule(alpha) == AlphaSchedule(((0, 1.5),))


@pytest.mark.parametrize(
    "alpha", [None, [1.0, 2.0], {}, "much", torch.tensor([1.0, 2.0]), 10**400, object()]
)
def test_what_is_no_alpha(alpha: Any) -> None:
    with pytest.raises(UsageError, match="alpha: got"):
        as_schedule(alpha)


@pytest.mark.parametrize("several", [[1.0, 2.0], (1, "2"), np.array([1, 2]), torch.tensor([1, 2])])
def test_one_for_each(several: Any) -> None:
    assert [one.at(0) for one in strength_for_each(several, 2)] == [1.0, 2.0]
    with pytest.raises(UsageError, match="got 2, expected one for each of 3"):
        strength_for_each(several, 3)


@pytest.mark.parametrize("one", [2, 2.0, "2", np.float32(2), torch.tensor(2.0)])
def test_one_for_all(one: Any) -> None:
    assert [alpha.at(0) for alpha in strength_for_each(one, 3)] == [2.0] * 3
    assert strength_for_each("0:2,4:1", 2) == [AlphaSchedule(((0, 2.0), (4, 1.0)))] * 2
