"""Comparing manifests: whether a command may resume the cache that another one began."""

import dataclasses
import re
from typing import Final

from mav.cache_schema.errors import MismatchError
from mav.cache_schema.manifest import Manifest

_NOT_COMPARED: Final = (
    # Progress, and values that vary with measurement noise.
    "created_by",
    "checks",
    # Compared by the extraction itself, or without effect on the values.
    "states.computed_in",
    "base.parameters",
    "complete",
    # Names; the contents are compared by digest.
    "base.id",
    "base.revision",
    "base.gguf_file",
    *(f"data.sources[].{name}" for name in ("id", "data_dir", "split", "limit")),
)
"""Manifest fields that may differ when a cache is resumed."""


def require_same(location: str, stored: Manifest, asked: Manifest) -> None:
    """Refuse to resume a cache that was begun with other settings.

    Args:
        location: The cache.
        stored: Its manifest.
        asked: The manifest that the command asks for.

    Raises:
        MismatchError: The two differ; names each difference.
    """
    different = {
        path: text
        for path, text in differences(stored, asked).items()
        if not re.sub(r"\[\d+\]", "[]", path).startswith(_NOT_COMPARED)
    }
    if different:
        listed = "".join(f"\n  - {path}: {text}" for path, text in different.items())
        raise MismatchError(
            f"{location}: this cache was begun with other settings:{listed}\n"
            f"{_former_revision(stored, asked)}"
            f"Give the settings it was begun with, or another `output`."
        )


def _former_revision(stored: Manifest, asked: Manifest) -> str:
    """Return how to select the base's former commit, if its branch has moved since."""
    before, now = stored.base.revision, asked.base.revision
    if stored.base.id != asked.base.id or not before or before == now:
        return ""
    return f"The base is at commit {now} now, and was at {before}: `revision` {before} names it.\n"


def differences(stored: object, asked: object, prefix: str = "") -> dict[str, str]:
    """Return the fields in which two records differ, as path -> `stored X, asked for Y`."""
    assert dataclasses.is_dataclass(stored)
    assert type(stored) is type(asked)
    different: dict[str, str] = {}
    for field in dataclasses.fields(stored):
        path = f"{prefix}{field.name}"
        a, b = getattr(stored, field.name), getattr(asked, field.name)
        if dataclasses.is_dataclass(a):
            different |= differences(a, b, f"{path}.")
        elif _holds_records(a) and len(a) == len(b):
            for number, pair in enumerate(zip(a, b, strict=True)):
                different |= differences(*pair, f"{path}[{number}].")
        elif _holds_records(a) or _holds_records(b):
            different[path] = f"stored {len(a)}, asked for {len(b)}"
        elif a != b:
            different[path] = f"stored {a!r}, asked for {b!r}"
    return different


def _holds_records(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])
