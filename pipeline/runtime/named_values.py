"""Values with names before them: `helpful=runs/a`, `helpful=1,harmless=0:2,64:0.5`."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mav.cache_schema.errors import UsageError

NAME: Final = re.compile(r"\w[\w.+-]*")
"""Names of heads and systems: letters, digits, `.`, `+`, `-` and `_`."""


def split_name(text: str) -> tuple[str | None, str]:
    """Return the name before `=`, or None, and the value.

    A path that exists is a value as a whole, whatever it has in it.
    """
    name, equals, value = text.partition("=")
    if equals and NAME.fullmatch(name) and not Path(text).exists():
        return name, value
    return None, text


def heads_of(texts: Sequence[str]) -> str | dict[str, str]:
    """Return the head of `DIR`, or the heads by name of several `NAME=DIR`.

    Args:
        texts: What was given; at least one.

    Raises:
        UsageError: There are several, and one has no name, or they have the same.
    """
    named = [split_name(text) for text in texts]
    if len(named) == 1 and named[0][0] is None:
        return named[0][1]
    found: dict[str, str] = {}
    for name, place in named:
        if name is None or not place:
            raise UsageError(
                f"head: got {len(texts)}, of which {name or place or 'one'} has no "
                f"{'place' if name else 'name'}, expected NAME=DIR of each, as in helpful={place}"
            )
        found[name] = place
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise UsageError(f"head: got two with the name {twice[0]}, expected different names")
    return found


def names_of(heads: object) -> tuple[str, ...]:
    """Return the names of several heads, given as a mapping; none of one without a name."""
    return tuple(heads) if isinstance(heads, Mapping) else ()


def places_of(heads: str | Path | Mapping[str, str | Path]) -> Mapping[str, str | Path]:
    """Return where heads are by name; one without a name is called ''."""
    return {"": heads} if isinstance(heads, str | Path) else heads


def text_of(values: Mapping[str, float]) -> str:
    """Return numbers by name as they are given on the command line."""
    return ",".join(f"{name}={value:g}" for name, value in values.items())


def named_parts(text: str) -> Mapping[str, str]:
    """Return the values of `NAME=VALUE,NAME=VALUE`, which may have commas in them.

    Raises:
        ValueError: It has another form, or the same name twice.
    """
    found: dict[str, str] = {}
    latest = None
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            if not NAME.fullmatch(name) or name in found:
                raise ValueError(text)
            latest, found[name] = name, value
        elif latest is None:
            raise ValueError(text)
        else:
            found[latest] += f",{part}"
    return found
