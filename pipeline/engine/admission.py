"""The strength that a request asks for, read before the request enters the engine.

An exception in the engine's worker ends the engine for everybody, so that all a request may hold is
checked here, and what passes cannot fail later.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.steering.bounds import bounded_strength
from mav.pipeline.decoding.steering.strengths import Strength

FIELD: Final = "alpha"
"""Of a request's `extra_args`, which OpenAI's clients send as `vllm_xargs`."""
_LONGEST: Final = 1000
"""Characters of a schedule."""
_MOST_HEADS: Final = 64


def strength_of(
    extra_args: Mapping[str, Any] | None, names: Sequence[str], default: Strength
) -> Strength:
    """Return the strength of a request.

    Args:
        extra_args: The `extra_args` of its sampling parameters.
        names: Of the heads; none of one head without a name.
        default: Strength of requests that name none.

    Raises:
        UsageError: What it gives is not a strength, or is out of bounds.
    """
    given = None if extra_args is None else extra_args.get(FIELD)
    return default if given is None else checked_strength(given, names)


def checked_strength(given: object, names: Sequence[str]) -> Strength:
    """Return the strength that a request gives: a number, a schedule, or these by name.

    Args:
        given: What it gives.
        names: Of the heads; none of one head without a name.

    Raises:
        UsageError: It is not a strength, or is out of bounds.
    """
    if isinstance(given, Mapping):
        if len(given) > _MOST_HEADS or not all(isinstance(name, str) for name in given):
            raise _refused(given)
        for one in given.values():
            _require_plain(one)
        return bounded_strength(dict(given), names)
    _require_plain(given)
    assert isinstance(given, int | float | str)
    return bounded_strength(given, names)


def _require_plain(given: object) -> None:
    # True is a whole number to Python, and nobody means strength 1 by it.
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise _refused(given)
    if isinstance(given, str) and len(given) > _LONGEST:
        raise UsageError(
            f"alpha: got a schedule of {len(given)} characters, expected at most {_LONGEST}"
        )


def _refused(given: object) -> UsageError:
    return UsageError(
        f"alpha: got {str(given)[:60]}, expected a number such as 1.5, a schedule such as "
        f"0:2,64:0.5, or of several heads these by name"
    )
