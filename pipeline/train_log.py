"""Metrics of a training run: a JSON-lines file and the trackers of accelerate."""

import json
from pathlib import Path
from typing import Any, Final

METRICS: Final = "metrics.jsonl"


class MetricsLog:
    """One JSON object a line, each with its `step`.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the log of a run that goes on after `first_step`; later lines are taken out."""
        self.path = folder / METRICS
        kept: list[str] = []
        if first_step and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            # A run that was killed may leave half a line at the end.
            whole = [line for line in lines if line.endswith("}")]
            kept = [line for line in whole if json.loads(line)["step"] <= first_step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
