"""Alpha: a constant, or a schedule over the tokens of a response."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

from mav.cache_schema.errors import UsageError


@dataclass(frozen=True)
class AlphaSchedule:
    """Alpha by position in the response.

    Attributes:
        points: (token, strength), tokens ascending from 0 on. Between two points the strength
            changes linearly; after the last it stays.

    Example:
        AlphaSchedule(((0, 2.0), (64, 0.5)))  # strong at first, weaker over 64 tokens
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        tokens = [token for token, _ in self.points]
        if not tokens or tokens != sorted(set(tokens)) or tokens[0] < 0:
            raise UsageError(
                f"alpha: got a schedule over the tokens {tokens}, expected ascending tokens from 0"
            )
        if not all(math.isfinite(strength) for _, strength in self.points):
            raise UsageError(f"alpha: got {self}, expected finite strengths")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `1.5`, or `token:strength` points such as `0:2,64:0.5`.

        Raises:
            UsageError: It is neither.
        """
        try:
            pairs = [
                point.split(":") for point in (text if ":" in text else f"0:{text}").split(",")
            ]
            points = tuple((int(token), float(strength)) for token, strength in pairs)
        except ValueError:
            points = ((0, math.nan),)
        if not all(math.isfinite(strength) for _, strength in points):
            raise UsageError(
                f"alpha: got {text!r}, expected a finite number such as 1.5, or token:strength "
                f"points such as 0:2,64:0.5"
            )
        return cls(points)

    def at(self, token: int) -> float:
        """Return alpha at a token of the response, counted from 0."""
        before = [point for point in self.points if point[0] <= token]
        after = [point for point in self.points if point[0] > token]
        if not before:
            return after[0][1]
        if not after:
            return before[-1][1]
        (first, start), (second, end) = before[-1], after[0]
        return start + (end - start) * (token - first) / (second - first)

    @property
    def is_constant(self) -> bool:
        """Whether every token has the same strength."""
        return len({strength for _, strength in self.points}) == 1

    def to_json(self) -> float | str:
        """Return the constant, or the schedule in the form that `parse` reads."""
        return self.points[0][1] if self.is_constant else str(self)

    def __str__(self) -> str:
        if self.is_constant:
            return _written(self.points[0][1])
        return ",".join(f"{token}:{_written(strength)}" for token, strength in self.points)


def _written(strength: float) -> str:
    """Return a number in as few digits as it takes to read the same one."""
    short = f"{strength:g}"
    return short if float(short) == strength else repr(strength)


Alpha = float | str | AlphaSchedule
"""What callers may give: a number, a schedule, or the text of either."""


def as_schedule(alpha: Alpha) -> AlphaSchedule:
    """Return a schedule; a number is one that never changes.

    Raises:
        UsageError: It is none of what callers may give.
    """
    if isinstance(alpha, AlphaSchedule):
        return alpha
    if isinstance(alpha, str):
        return AlphaSchedule.parse(alpha)
    try:
        # Numbers of NumPy and tensors of one element are numbers too.
        strength = float(alpha)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UsageError(f"alpha: got {str(alpha)[:60]}, expected a finite number") from error
    return AlphaSchedule(((0, strength),))


def for_each(alpha: Alpha | Sequence[Alpha], count: int) -> list[AlphaSchedule]:
    """Return a schedule for each of several prompts.

    Args:
        alpha: One for all, or one for each.
        count: Number of prompts.

    Raises:
        UsageError: There are more or fewer alphas than prompts.
    """
    several = _several(alpha)
    if several is None:
        return [as_schedule(cast("Alpha", alpha))] * count
    each = [as_schedule(alpha) for alpha in several]
    if len(each) != count:
        raise UsageError(f"alpha: got {len(each)}, expected one for each of {count}")
    return each


def as_numbers(alpha: Alpha | Sequence[Alpha]) -> float | list[float]:
    """Return constants for passes without token positions; refuse schedules.

    Args:
        alpha: One for all rows, or one for each.

    Raises:
        UsageError: One is a schedule, or none of what callers may give.
    """
    several = _several(alpha)
    if several is None:
        return _as_number(cast("Alpha", alpha))
    return [_as_number(alpha) for alpha in several]


def _as_number(alpha: Alpha) -> float:
    schedule = as_schedule(alpha)
    if not schedule.is_constant:
        raise UsageError(
            f"alpha: got the schedule {schedule}, expected a number; schedules count the tokens "
            f"that are generated, which a plain forward pass has not. Use `generate`, or `stream`"
        )
    return schedule.points[0][1]


def _several(alpha: Alpha | Sequence[Alpha]) -> Sequence[Alpha] | None:
    """Return the alphas if a sequence of them is given, or None."""
    one = isinstance(alpha, str | AlphaSchedule) or getattr(alpha, "ndim", 1) != 1
    return None if one or not hasattr(alpha, "__len__") else cast("Sequence[Alpha]", alpha)
