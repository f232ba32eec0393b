"""Strengths that a request may ask for."""

from collections.abc import Sequence
from typing import Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.steering.strengths import Alpha, Strength, as_strength

MAX_ALPHA: Final = 100.0
"""Largest strength, either way: beyond it logits leave the range in which they mean anything."""
MAX_SCHEDULE_TOKEN: Final = 1_000_000
"""Last token that a schedule of alphas may name."""


def bounded_strength(alpha: Alpha, names: Sequence[str] = ()) -> Strength:
    """Return the strength that a request means.

    Args:
        alpha: What it gives; see `as_strength`.
        names: Of the heads; none of one head without a name.

    Raises:
        UsageError: It is none of what a request may give, or out of bounds.
    """
    strength = as_strength(alpha, names)
    if any(abs(one) > MAX_ALPHA or token > MAX_SCHEDULE_TOKEN for token, one in strength.points):
        raise UsageError(
            f"alpha: got {alpha!r}, expected alphas from {-MAX_ALPHA:g} to {MAX_ALPHA:g} at "
            f"tokens up to {MAX_SCHEDULE_TOKEN}"
        )
    return strength
