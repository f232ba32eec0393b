"""Columns under other names, and rows of other forms, made into those that are read."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from mav.cache_schema.errors import DataError, MAVError, UsageError
from mav.pipeline.preferences.rows import ANSWERS, COMPLETION, LABEL

Transform = Callable[[Any], Mapping[str, Any] | None]
"""Makes a row of the usual forms of one of a data set; None leaves it out."""
NAMES: Final = ("prompt", *ANSWERS, COMPLETION, LABEL, "system")
"""Columns that may have another name in a data set."""
LEFT_OUT: Final = "left_out_by_transform"


def parse_columns(text: str, *, between: str = ",", equals: str = "=") -> dict[str, str]:
    """Read `prompt=question,chosen=good`.

    Args:
        text: What was given.
        between: What stands between two of them.
        equals: What stands between a name and that of the data set.

    Raises:
        ValueError: With what was expected.
    """
    found: dict[str, str] = {}
    for part in text.split(between):
        name, sign, theirs = part.strip().partition(equals)
        if not sign or not theirs or name in found:
            raise ValueError(f"expected such as prompt{equals}question{between}chosen{equals}good")
        found[name] = theirs
    return found


def require_columns(columns: Any) -> None:
    """Refuse names of columns that are not read.

    Raises:
        UsageError: Naming those that are.
    """
    if not isinstance(columns, Mapping):
        raise UsageError(
            f"columns: got {type(columns).__name__}, expected such as {{'prompt': 'question'}}"
        )
    for name, theirs in columns.items():
        if name not in NAMES:
            swapped = f"; did you mean {theirs}={name}?" if theirs in NAMES else ""
            raise UsageError(
                f"columns: got {name!r}, expected one of {', '.join(NAMES)} before the name that "
                f"the data set has{swapped}"
            )
        if not isinstance(theirs, str) or not theirs:
            raise UsageError(f"columns: got {theirs!r} for {name}, expected a column's name")


def adapted(row: Any, place: str, columns: Mapping[str, str], transform: Transform | None) -> Any:
    """Return a row with the usual names, or None where it is left out.

    Args:
        row: As the data set has it.
        place: Where it stands, for errors.
        columns: Name of a column -> its name in the data set.
        transform: What is called with the row first.

    Raises:
        DataError: It has no such column, or `transform` fails.
    """
    if transform is not None:
        try:
            row = transform(row)
        except MAVError:
            raise
        except Exception as error:
            raise DataError(
                f"{place}: `transform` failed: {type(error).__name__}: {error}"
            ) from error
        if row is None:
            return None
        if not isinstance(row, Mapping):
            raise DataError(
                f"{place}: `transform` gave {type(row).__name__}, expected a dictionary, or None "
                f"to leave the row out"
            )
    if not columns or not isinstance(row, Mapping):
        return row
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise DataError(
            f"{place}: no column {missing[0]!r}, which `columns` names; there are "
            f"{', '.join(map(str, row))}"
        )
    moved = {theirs for name, theirs in columns.items() if name != theirs}
    rest = {name: value for name, value in row.items() if name not in moved}
    return rest | {name: row[theirs] for name, theirs in columns.items()}
