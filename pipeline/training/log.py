"""Where metrics of a training run go: a file of JSON lines, and a tracker."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import Tracker
from mav.pipeline.runtime.durable_files import write_file

if TYPE_CHECKING:  # reports read logs, and need not load what training does
    from accelerate import Accelerator

    from mav.pipeline.training.options import TrainOptions


METRICS: Final = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of the log.

    Attributes:
        step: Optimizer steps taken.
        values: Metric -> value.
        text: The line, verbatim.
    """

    step: int
    values: dict[str, float]
    text: str


def read_lines(path: Path) -> tuple[list[LogLine], int]:
    """Read a log; return its lines, and how many others are not metrics.

    A killed run may leave half a line at the end, and a power failure zeros anywhere.

    Raises:
        OSError: It cannot be read at all.
    """
    lines: list[LogLine] = []
    unreadable = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(text)
            step = int(entry.pop("step"))
            values = {name: float(value) for name, value in entry.items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            unreadable += 1
            continue
        lines.append(LogLine(step=step, values=values, text=text))
    return lines, unreadable


class MetricsLog:
    """One JSON object per line, each with its `step`.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open the log of a run, without lines of steps after the one it resumes from.

        Args:
            folder: Folder of the run.
            first_step: Steps already taken; with 0 the log is empty.
        """
        self.path = folder / METRICS
        lines = read_lines(self.path)[0] if first_step and self.path.is_file() else []
        kept = "".join(f"{line.text}\n" for line in lines if line.step <= first_step)
        write_file(self.path, kept.encode())

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def require_tracker(name: "Tracker") -> None:
    """Refuse a tracker whose package is not installed; accelerate would go on without it.

    Raises:
        UsageError: It is not.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UsageError(f"report_to: got {name!r}, whose package is missing: pip install {name}")


def start_tracker(
    accelerator: "Accelerator", options: "TrainOptions", first_step: int, settings: dict[str, Any]
) -> None:
    """Start or resume a run of a tracker.

    Args:
        accelerator: Made with `log_with` naming the tracker.
        options: The tracker, and the names of project and run.
        first_step: Steps already taken; TensorBoard drops later ones.
        settings: The options that decide the run.
    """
    name, run = options.report_to, options.run_name
    if name == "tensorboard":
        # It would show settings as a run of their own.
        purged = {"tensorboard": {"purge_step": first_step + 1}}
        accelerator.init_trackers(run or "tensorboard", init_kwargs=purged)
    elif name != "none":
        named = {} if run is None else {name: {"name": run}}
        accelerator.init_trackers(options.project or "mav", config=settings, init_kwargs=named)
