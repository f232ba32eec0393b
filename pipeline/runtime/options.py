"""Options as dataclass fields that carry their help, choices and bounds.

The command line makes flags from them, and `check_options` validates them, so that each is stated
once. Errors name the field, before a colon or in backticks; the command line shows its flag.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final

from mav.cache_schema.errors import UsageError

_KEY: Final = "option"
_LARGEST_BIAS: Final = 100
"""Most that is added or taken, as in OpenAI's API."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """Properties of an option besides name, type and default.

    Attributes:
        help: One line for `--help`.
        choices: Values it may have; any if empty.
        other_types: Whether values other than text are allowed besides `choices`.
        whole: Whether its value is a whole number.
        number: Whether its value is a number, whole or not.
        words: What it may be in place of a number.
        numbers: Whether its value is one number or more, each whole or not.
        at_least: Smallest value.
        above: A value it must exceed.
        at_most: Largest value.
        below: A value it must stay below.
        default_text: What `--help` says instead of the default, where that depends on the input.
        metavar: How `--help` names the value.
        off: Flag that turns it off, where it is on by default; `no-` and its name if None.
    """

    help: str
    choices: tuple[str, ...] = ()
    other_types: bool = False
    whole: bool = False
    number: bool = False
    words: tuple[str, ...] = ()
    numbers: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    default_text: str | None = None
    metavar: str | None = None
    off: str | None = None

    def expected(self) -> str:
        """Return the bounds in words."""
        low, above, high, below = self.at_least, self.above, self.at_most, self.below
        if low is not None and high is not None:
            return f"{_plain(low)} to {_plain(high)}"
        if low is not None and below is not None:
            return f"{_plain(low)} or more and less than {_plain(below)}"
        if above is not None and high is not None:
            return f"more than {_plain(above)}, at most {_plain(high)}"
        if above is not None:
            return f"more than {_plain(above)}"
        return f"at least {_plain(low)}" if low is not None else "a finite number"

    def is_within(self, value: float) -> bool:
        """Return whether a number is within the bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def known(**values: Any) -> dict[str, Option]:
    """Return the metadata of a field that is an option; `values` are those of `Option`."""
    return {_KEY: Option(**values)}


def option(default: Any, /, **values: Any) -> Any:
    """Return a dataclass field with a default and an `Option` made of `values`."""
    return dataclasses.field(default=default, metadata=known(**values))


def option_of(field: "dataclasses.Field[Any]") -> Option | None:
    """Return the option of a field, or None if it is not an option."""
    return field.metadata.get(_KEY)


def check_options(options: Any) -> None:
    """Check all fields of a dataclass against their options; numbers become Python's own.

    Raises:
        UsageError: One line per invalid field.
    """
    problems = []
    for field in dataclasses.fields(options):
        rule, value = option_of(field), getattr(options, field.name)
        if rule is None or (value is None and field.default is None):
            continue
        problem = _problem(rule, value, flag=isinstance(field.default, bool))
        if problem:
            problems.append(f"{field.name}: got {value!r}, expected {problem}")
        elif rule.numbers:
            object.__setattr__(options, field.name, tuple(map(float, value)))
        elif (rule.whole or rule.number) and not isinstance(value, str):
            object.__setattr__(options, field.name, int(value) if rule.whole else float(value))
    if problems:
        raise UsageError("\n".join(problems))


def token_biases(name: str, given: Any) -> tuple[tuple[int, float], ...]:
    """Return token ids, in order, with what is added to the logit of each; nothing for 0.

    Args:
        name: The option, for errors.
        given: A mapping of token ids to numbers, or pairs of these.

    Raises:
        UsageError: It is something else, or a number is beyond -100 to 100.
    """
    try:
        pairs = [*dict(given).items()]
        twice = len(pairs) < len(given)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name}: got {given!r}, expected a mapping of token ids to numbers"
        ) from None
    if twice:
        raise UsageError(f"{name}: got {given!r}, expected each token once")
    for token, bias in pairs:
        if isinstance(token, bool) or not isinstance(token, Integral) or int(token) < 0:
            raise UsageError(f"{name}: got the token {token!r}, expected a token's id")
        number = not isinstance(bias, bool) and isinstance(bias, Real)
        if not (number and math.isfinite(bias) and abs(bias) <= _LARGEST_BIAS):
            raise UsageError(
                f"{name}: got {bias!r} for the token {token}, expected a number from "
                f"-{_LARGEST_BIAS} to {_LARGEST_BIAS}"
            )
    return tuple(sorted((int(token), float(bias)) for token, bias in pairs if bias))


def _problem(rule: Option, value: Any, *, flag: bool) -> str | None:
    """Return what was expected of an invalid value, or None."""
    if flag:
        return None if isinstance(value, bool) else "True or False"
    if rule.choices:
        other = rule.other_types and not isinstance(value, str)
        return None if other or value in rule.choices else f"one of {', '.join(rule.choices)}"
    if rule.numbers:
        several = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
        one = Option(help=rule.help, number=True)
        sound = several and all(_problem(one, number, flag=False) is None for number in value)
        return None if sound else "finite numbers"
    if not (rule.whole or rule.number):
        return None
    if isinstance(value, str) and value in rule.words:
        return None
    word = "".join(f" or {word}" for word in rule.words)
    if isinstance(value, bool) or not isinstance(value, Integral if rule.whole else Real):
        return f"a whole number{word}" if rule.whole else f"a number{word}"
    number: Any = value  # not as a float, which large whole numbers do not fit
    if not math.isfinite(number) or not rule.is_within(number):
        return f"{rule.expected()}{',' if word else ''}{word}"
    return None


def _plain(bound: float) -> str:
    """Return a bound in digits, without an exponent."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
