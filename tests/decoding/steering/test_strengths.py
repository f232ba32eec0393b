"""Strengths of several heads: what is read, what is refused, and what a token gets."""

from typing import Any

import pytest

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule
from mav.pipeline.decoding.steering.strengths import (
    HeadAlphas,
    as_strength,
    constant_strengths,
    strength_for_each,
    strength_of_text,
)

BOTH = ("helpful", "harmless")


@pytest.mark.parametrize(
    "given",
    [
        "helpful=0:2,4:0,harmless=0.5",
        " harmless = 0.5, helpful=0:2,4:0",
        {"harmless": 0.5, "helpful": "0:2,4:0"},
        {"helpful": AlphaSchedule(((0, 2.0), (4, 0.0))), "harmless": 0.5},
    ],
    ids=str,
)
def test_each_head_has_its_own_schedule_in_the_order_of_the_heads(given: Any) -> None:
    found = as_strength(given, BOTH)
    assert [found.at(token) for token in (0, 2, 9)] == [(2.0, 0.5), (1.0, 0.5), (0.0, 0.5)]
    assert not found.is_constant
    assert str(found) == "helpful=0:2,4:0,harmless=0.5"
    assert as_strength(str(found), BOTH) == found == as_strength(found, BOTH)
    assert found.to_json() == {"helpful": "0:2,4:0", "harmless": 0.5}


@pytest.mark.parametrize("zero", [0, 0.0, "0", AlphaSchedule(((0, 0.0),))])
def test_0_alone_is_the_base(zero: Any) -> None:
    assert as_strength(zero, BOTH).at(3) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (1.0, r"got 1, expected a strength for each head, as in helpful=1,harmless=1; 0 alone"),
        ("0:0,4:1", r"got 0:0,4:1, expected a strength for each head"),
        ("helpful=1", r"got helpful=1, expected .* of helpful, harmless: harmless is missing"),
        ({}, r"helpful is missing. 0 leaves a head out"),
        ("helpful=1,harmless=0,kind=1", r"no head is called kind"),
        ({"helpful": 1, "harmless": "strong"}, r"got 'strong', expected a finite number"),
        ({"helpful": 1, "harmless": float("nan")}, r"finite"),
        ("helpful=1,helpful=2", r"expected a strength for each head once"),
        ("1,helpful=2", r"expected a strength for each head once"),
        ("helpful=,harmless=1", r"got '', expected a finite number"),
    ],
    ids=str,
)
def test_what_is_not_said_or_not_known_is_refused(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        as_strength(given, BOTH)


@pytest.mark.parametrize("given", ["helpful=1", {"helpful": 1}])
def test_one_head_without_a_name_takes_no_names(given: Any) -> None:
    with pytest.raises(UsageError, match=r"got helpful=1, expected a number.*`head` helpful=DIR"):
        as_strength(given)
    assert as_strength("0:1,4:2") == AlphaSchedule(((0, 1.0), (4, 2.0)))
    assert isinstance(strength_of_text("a=1"), HeadAlphas)
    assert isinstance(strength_of_text("1"), AlphaSchedule)


def test_one_for_all_or_one_for_each() -> None:
    one = {"helpful": 1, "harmless": 2}
    assert [s.at(0) for s in strength_for_each(one, 2, BOTH)] == [(1.0, 2.0)] * 2
    several = strength_for_each([one, "helpful=3,harmless=4", 0], 3, BOTH)
    assert [s.at(0) for s in several] == [(1.0, 2.0), (3.0, 4.0), (0.0, 0.0)]
    with pytest.raises(UsageError, match="got 1, expected one for each of 2"):
        strength_for_each([one], 2, BOTH)


def test_passes_without_tokens_take_constants() -> None:
    assert constant_strengths({"helpful": 1, "harmless": 2}, BOTH) == (1.0, 2.0)
    assert constant_strengths([0, {"helpful": 1, "harmless": 2}], BOTH) == [(0.0, 0.0), (1.0, 2.0)]
    with pytest.raises(UsageError, match="got the schedule helpful=0:1,4:2,harmless=1"):
        constant_strengths("helpful=0:1,4:2,harmless=1", BOTH)
