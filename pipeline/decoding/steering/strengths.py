"""The strengths of an answer: one head's alpha, or an alpha for each of several heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.alpha import AlphaSchedule, as_schedule
from mav.pipeline.runtime.named_values import named_parts, text_of


@dataclass(frozen=True)
class HeadAlphas:
    """Alpha of each of several heads, by position in the response.

    Attributes:
        schedules: (name of a head, its alpha), in the order of the heads.
    """

    schedules: tuple[tuple[str, AlphaSchedule], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `helpful=1,harmless=0.5`, in which each may be a schedule: `helpful=0:2,64:0.5`.

        Raises:
            UsageError: It has another form.
        """
        try:
            parts = named_parts(text)
        except ValueError:
            raise UsageError(
                f"alpha: got {text!r}, expected a strength for each head once, as in "
                f"helpful=1,harmless=0.5"
            ) from None
        return cls(tuple((name, AlphaSchedule.parse(value)) for name, value in parts.items()))

    def at(self, token: int) -> tuple[float, ...]:
        """Return the alphas at a token of the response, counted from 0."""
        return tuple(schedule.at(token) for _, schedule in self.schedules)

    @property
    def is_constant(self) -> bool:
        """Whether every token has the same alphas."""
        return all(schedule.is_constant for _, schedule in self.schedules)

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """The points of all schedules."""
        return tuple(point for _, schedule in self.schedules for point in schedule.points)

    def to_json(self) -> dict[str, float | str]:
        """Return each head's alpha in the form that `AlphaSchedule.to_json` gives it."""
        return {name: schedule.to_json() for name, schedule in self.schedules}

    def __str__(self) -> str:
        return ",".join(f"{name}={schedule}" for name, schedule in self.schedules)


Strength = AlphaSchedule | HeadAlphas
"""What one answer is decoded with."""
Alpha = float | str | AlphaSchedule | HeadAlphas | Mapping[str, float | str | AlphaSchedule]
"""What callers may give: a number, a schedule, the text of either; of several heads, these by name,
as a mapping or as text."""


def as_strength(alpha: Alpha, names: Sequence[str] = ()) -> Strength:
    """Return the strength that callers mean.

    Args:
        alpha: What they give. Of several heads, each is to be named; 0 alone is the base.
        names: Of the heads; none of one head without a name.

    Raises:
        UsageError: It is none of what callers may give, or names other heads than these.
    """
    by_name = _by_name(alpha)
    if not names:
        if by_name is not None:
            raise UsageError(
                f"alpha: got {by_name}, expected a number or a schedule, as the one head has no "
                f"name; give it one, as in `head` helpful=DIR"
            )
        return as_schedule(cast("float | str | AlphaSchedule", alpha))
    if by_name is None:
        one = as_schedule(cast("float | str | AlphaSchedule", alpha))
        if any(strength for _, strength in one.points):
            raise UsageError(
                f"alpha: got {one}, expected a strength for each head, as in "
                f"{text_of(dict.fromkeys(names, 1))}; 0 alone is the base"
            )
        return HeadAlphas(tuple((name, one) for name in names))
    given = dict(by_name.schedules)
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if unknown or missing:
        wrong = f"no head is called {unknown[0]}" if unknown else f"{missing[0]} is missing"
        raise UsageError(
            f"alpha: got {by_name}, expected a strength for each of {', '.join(names)}: {wrong}. "
            f"0 leaves a head out"
        )
    return HeadAlphas(tuple((name, given[name]) for name in names))


def strength_of_text(text: str) -> Strength:
    """Read the text of a strength, of one head or several, whose names are checked later.

    Raises:
        UsageError: It is neither a strength nor strengths by name.
    """
    return HeadAlphas.parse(text) if "=" in text else AlphaSchedule.parse(text)


def strength_for_each(
    alpha: Alpha | Sequence[Alpha], count: int, names: Sequence[str] = ()
) -> list[Strength]:
    """Return a strength for each of several prompts.

    Args:
        alpha: One for all, or one for each.
        count: Number of prompts.
        names: Of the heads; none of one head without a name.

    Raises:
        UsageError: There are more or fewer alphas than prompts.
    """
    several = _several(alpha)
    if several is None:
        return [as_strength(cast("Alpha", alpha), names)] * count
    each = [as_strength(alpha, names) for alpha in several]
    if len(each) != count:
        raise UsageError(f"alpha: got {len(each)}, expected one for each of {count}")
    return each


def constant_strengths(
    alpha: Alpha | Sequence[Alpha], names: Sequence[str] = ()
) -> float | tuple[float, ...] | list[float | tuple[float, ...]]:
    """Return constants for passes without token positions; refuse schedules.

    Args:
        alpha: One for all rows, or one for each.
        names: Of the heads; none of one head without a name.

    Raises:
        UsageError: One is a schedule, or none of what callers may give.
    """
    several = _several(alpha)
    if several is None:
        return _constant(cast("Alpha", alpha), names)
    return [_constant(alpha, names) for alpha in several]


def _constant(alpha: Alpha, names: Sequence[str]) -> float | tuple[float, ...]:
    strength = as_strength(alpha, names)
    if not strength.is_constant:
        raise UsageError(
            f"alpha: got the schedule {strength}, expected a number; schedules count the tokens "
            f"that are generated, which a plain forward pass has not. Use `generate`, or `stream`"
        )
    return strength.at(0)


def _by_name(alpha: Any) -> HeadAlphas | None:
    """Return strengths that are given by name, or None."""
    if isinstance(alpha, HeadAlphas):
        return alpha
    if isinstance(alpha, Mapping):
        return HeadAlphas(tuple((str(name), as_schedule(one)) for name, one in alpha.items()))
    return HeadAlphas.parse(alpha) if isinstance(alpha, str) and "=" in alpha else None


def _several(alpha: Alpha | Sequence[Alpha]) -> Sequence[Alpha] | None:
    """Return the alphas if a sequence of them is given, or None."""
    one = isinstance(alpha, str | AlphaSchedule | HeadAlphas | Mapping)
    if one or getattr(alpha, "ndim", 1) != 1:
        return None
    return cast("Sequence[Alpha]", alpha) if hasattr(alpha, "__len__") else None
