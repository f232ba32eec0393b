"""JSON schemas as they are asked for: their limits, and the grammar of the texts they allow."""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from mav.cache_schema.errors import UsageError

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
"""Schema of every JSON object."""
MAX_CHARACTERS: Final = 32_768
"""Most characters of a schema, as compact JSON."""
MAX_DEPTH: Final = 64
"""Most objects and arrays inside each other, in a schema."""
MAX_MULTIPLE: Final = 10_000
"""Most states that `multipleOf` may take: the product of its different values' digits.

What the library compiles for it has as many, which its own limits do not count.
"""
_OPTIONS: Final = {
    # One space, or a new line with indentation: a model that repeats itself comes to an end.
    "whitespace_pattern": r"( |\n[ \t]{0,40})?",
    "lenient": False,
    "coerce_one_of": False,
}


def require_library() -> None:
    """Refuse to go on without llguidance.

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise UsageError("needs llguidance, which is not installed: pip install 'mav-align[json]'")


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of the texts that a schema allows, in llguidance's form of Lark.

    A text may begin with a space, as that is how many tokenizers begin a word.

    Args:
        schema: JSON Schema of draft 2020-12.

    Raises:
        UsageError: The schema is larger than the limits above allow.
    """
    text = json.dumps({**schema, "x-guidance": _OPTIONS}, separators=(",", ":"))
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"has {len(text)} characters, expected at most {MAX_CHARACTERS}")
    multiples: set[Decimal] = set()
    for depth, name, value in _entries(schema):
        if depth > MAX_DEPTH:
            raise UsageError(f"is nested more than {MAX_DEPTH} deep")
        if name == "multipleOf" and isinstance(value, int | float) and value:
            multiples.add(abs(Decimal(str(value))))
    states = math.prod(int("".join(map(str, value.as_tuple().digits))) for value in multiples)
    if states > MAX_MULTIPLE:
        raise UsageError(
            f"multipleOf: the product of its different values has the digits {states}, expected at "
            f"most {MAX_MULTIPLE}"
        )
    return f'start: " "? json\njson: %json {text}'


def _entries(schema: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
    """Yield the depth, name and value of each entry of every object in a schema."""
    waiting: list[tuple[int, Any]] = [(1, schema)]
    while waiting:
        depth, value = waiting.pop()
        if isinstance(value, Mapping):
            yield from ((depth, name, inner) for name, inner in value.items())
            waiting += [(depth + 1, inner) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(depth + 1, inner) for inner in value]
