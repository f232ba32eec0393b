"""Metrics of a training run: a JSON-lines file, read as far as it is not damaged."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mav.pipeline.runtime.durable_files import write_file

METRICS: Final = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of the log.

    Attributes:
        step: Optimizer steps taken.
        values: Metric -> value.
        text: The line as it stands.
    """

    step: int
    values: dict[str, float]
    text: str


def read_lines(path: Path) -> tuple[list[LogLine], int]:
    """Read a log; return its lines, and how many more there are that are not metrics.

    A killed run may leave half a line at the end, and a power failure zeros anywhere.

    Raises:
        OSError: It cannot be read at all.
    """
    found: list[LogLine] = []
    unreadable = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(text)
            step = int(entry.pop("step"))
            values = {name: float(value) for name, value in entry.items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            unreadable += 1
            continue
        found.append(LogLine(step=step, values=values, text=text))
    return found, unreadable


class MetricsLog:
    """One JSON object per line, each with its `step`.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the log of a run that goes on after `first_step`; later lines are taken out."""
        self.path = folder / METRICS
        lines = read_lines(self.path)[0] if first_step and self.path.is_file() else []
        kept = "".join(f"{line.text}\n" for line in lines if line.step <= first_step)
        write_file(self.path, kept.encode())

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
