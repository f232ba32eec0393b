"""Files of JSON lines that an interrupted run leaves intact and can resume.

The first line says what made the others. A line is forced to the disk before the next is computed,
and a torn last one is cut off.
"""

import fcntl
import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from mav.cache_schema.errors import DataError

K = TypeVar("K", bound=Hashable)


class ResumableLines(Generic[K]):
    """Lines of a file that is open, by their keys.

    Attributes:
        lines: The lines by key, including those of earlier runs.
    """

    def __init__(
        self, file: IO[str], key: Callable[[dict[str, Any]], K], lines: dict[K, Any]
    ) -> None:
        """Begin with what earlier runs left; see `resumable_lines`."""
        self.lines = lines
        self._file = file
        self._key = key

    def append(self, values: Sequence[dict[str, Any]]) -> None:
        """Write lines and force them to the disk."""
        _append(self._file, values)
        # Before the disk, which may be slow: an interruption meanwhile leaves them in the file.
        self.lines |= {self._key(value): value for value in values}
        os.fsync(self._file.fileno())


@contextmanager
def resumable_lines(
    path: Path, made_by: Mapping[str, Any], key: Callable[[dict[str, Any]], K]
) -> Iterator[ResumableLines[K]]:
    """Open a file for lines that a run makes, and lock it until the context is left.

    Args:
        path: The file, created if missing.
        made_by: JSON values that determine the lines.
        key: Returns what identifies a line.

    Raises:
        DataError: Another run is writing it or has left other lines, or they are not answers.
    """
    with path.open("a+", encoding="utf-8") as file:
        _lock(file, path)
        lines = _read(path, made_by, key)
        if lines is None:
            lines = {}
            _append(file, [dict(made_by)])
            os.fsync(file.fileno())
        yield ResumableLines(file, key, lines)


def json_line(value: Mapping[str, Any]) -> str:
    """Return an object as a line of a file."""
    return f"{json.dumps(value, ensure_ascii=False)}\n"


def _append(file: IO[str], values: Sequence[Mapping[str, Any]]) -> None:
    file.write("".join(map(json_line, values)))
    file.flush()


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(
            f"{path}: another run is writing answers there; wait for it, or name another `output`"
        ) from error


def _read(
    path: Path, made_by: Mapping[str, Any], key: Callable[[dict[str, Any]], K]
) -> dict[K, Any] | None:
    """Return the lines of earlier runs by their keys, or None if there are none.

    An incomplete last line is removed, even if it is the header, which describes the others.
    """
    raw = path.read_bytes()
    if not raw:
        return None
    whole = raw[: raw.rfind(b"\n") + 1]
    if not whole and json_line(made_by).encode().startswith(raw):
        os.truncate(path, 0)
        return None
    try:
        header, *values = [json.loads(line) for line in whole.splitlines()]
        lines = {key(value): value for value in values}
        other = [name for name, value in made_by.items() if header.get(name) != value]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not the answers of an interrupted run, or damaged: {error}. Remove it to "
            f"start over, or name another `output`."
        ) from error
    if other:
        shown = "; ".join(f"{name}: {header.get(name)!r}, now {made_by[name]!r}" for name in other)
        raise DataError(
            f"{path}: answers of a run with other settings ({shown}). Remove it to start over, or "
            f"name another `output`."
        )
    os.truncate(path, len(whole))
    return lines
