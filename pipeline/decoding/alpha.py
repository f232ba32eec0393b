"""Alpha: a constant, or a schedule over the tokens of a response."""

import math
from dataclasses import dataclass
from typing import Self

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


def as_schedule(alpha: float | str | AlphaSchedule) -> AlphaSchedule:
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
