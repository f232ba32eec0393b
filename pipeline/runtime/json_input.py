"""Strict parsing of JSON from outside: no NaN, no lone surrogates, no endless nesting."""

import json
from typing import Any, NoReturn


def strict_json(text: str | bytes) -> Any:
    """Parse a text.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
        # Halves of surrogate pairs can be written in JSON but are not text, and 1e999 is infinite.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
