"""Rows that are given as an object: a list of dictionaries, or a loaded data set of `datasets`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from mav.cache_schema.errors import UsageError

IN_MEMORY: Final = "memory:"
"""Begins the name of a data set that was not read from files."""
EXPECTED: Final = (
    "a DataSource, a file or hub id, a list of dictionaries or a datasets.Dataset; a tuple of "
    "these for several"
)


def require_rows(rows: Any, limit: int | None) -> None:
    """Refuse rows that are not a data set, or that may have no end.

    Args:
        rows: What was given.
        limit: How many of them are to be read.

    Raises:
        UsageError: With the form that is expected.
    """
    kind = type(rows).__name__
    if isinstance(rows, list | tuple):
        if not rows:
            raise UsageError("data: got a list without rows, expected at least one")
    elif _is(rows, "DatasetDict", "IterableDatasetDict"):
        raise UsageError(
            f"data: got a {kind} of {', '.join(map(str, rows))}, expected one split of it, such as "
            f"data[{str(next(iter(rows), 'train'))!r}], or several in a tuple"
        )
    elif _is(rows, "IterableDataset"):
        if limit is None:
            raise UsageError(
                "data: got a stream, which may have no end, and an extraction reads all rows "
                "before it runs the base; say how many as DataSource(rows=stream, limit=10_000)"
            )
    elif not _is(rows, "Dataset"):
        again = "; rows are read again on resuming, so make it a list"
        raise UsageError(
            f"data: got {kind}, expected {EXPECTED}{again if isinstance(rows, Iterator) else ''}"
        )


def split_of(rows: Any) -> str | None:
    """Return the name of the split that a loaded data set says it is."""
    named = getattr(rows, "split", None)
    return None if named is None else str(named)


def name_of(rows: Any) -> str:
    """Return what caches call rows that were given as an object."""
    return f"{IN_MEMORY}{type(rows).__name__}"


def given_rows(
    rows: Any, name: str, choose: Callable[[Sequence[str]], tuple[list[str], dict[str, None]]]
) -> Iterator[tuple[str, Any]]:
    """Yield the place and the contents of each row.

    Args:
        rows: The rows.
        name: What to call them.
        choose: Gives the columns to read of those there are, and the others, which may hold what
            cannot be decoded.
    """
    others: dict[str, None] = {}
    names = getattr(rows, "column_names", None)
    if names is not None:
        known, others = choose(names)
        rows = rows.select_columns(known) if known else [{}]
    for number, row in enumerate(rows):
        yield f"{name}, row {number}", {**others, **row} if others else row


def _is(rows: Any, *kinds: str) -> bool:
    """Return whether rows are an object of one of these classes of `datasets`."""
    # Which has been imported by whoever made such an object.
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(
        rows, tuple(getattr(datasets, kind) for kind in kinds)
    )
