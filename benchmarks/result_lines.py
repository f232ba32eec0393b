"""A file of results with a line for each finished run, which is never run again.

A line is a JSON object. What it is about is its `run`, plain JSON values; the rest is what was
found. Lines are only ever added, so that the file grows over days and machines; a line that was cut
off by a crash is told and left out.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.synthetic import say


class ResultLines:
    """The lines of a file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that is not there yet has no lines."""
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        if not path.is_file():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                self._found[_key(values["run"])] = values
            except (ValueError, KeyError, TypeError):
                say(f"{path}, line {number}: is no result, and is left out")

    def get(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what was found for a run, or None if it was not run yet."""
        return self._found.get(_key(run))

    def add(self, run: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Add a line, forced to the disk."""
        values = {"run": dict(run), **found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            # Behind a line that was cut off, this one would be lost with it.
            file.write(("\n" if begun and self.path.stat().st_size else "") + json.dumps(values))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[_key(run)] = values

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the lines in the order they were made."""
        yield from self._found.values()


def _key(run: Mapping[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)
