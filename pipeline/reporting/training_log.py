"""The log of the training run that a head is from, as a section of its report."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mav.pipeline.reporting.plots import (
    Chart,
    Point,
    Series,
    plots,
    table,
    text,
)
from mav.pipeline.training.log import METRICS, read_lines

_MOST_ROWS: Final = 200
_CURVES: Final = (
    ("loss", "Loss", False),
    ("rewards/accuracies", "Reward accuracy", True),
    ("rewards/margins", "Reward margin (nats times beta)", False),
    ("learning_rate", "Learning rate", False),
)
Log = dict[int, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The metrics log of a training run.

    Attributes:
        path: The file.
        values: Step -> metric -> value; those on held-out pairs begin with `eval_`.
        unreadable: Lines that are not metrics; a killed run may leave one.
    """

    path: Path
    values: Log
    unreadable: int


def read_log(head: Path) -> TrainingLog | None:
    """Read the log of the run that wrote a head, or None if it is not beside the head's folder."""
    path = head.resolve().parent / METRICS
    try:
        lines, unreadable = read_lines(path)
    except OSError:
        return None
    values: Log = {}
    for line in lines:
        values.setdefault(line.step, {}).update(line.values)
    return TrainingLog(path=path, values=dict(sorted(values.items())), unreadable=unreadable)


def training_section(log: TrainingLog | None, step: int) -> str:
    """Return the section with the curves of a training run.

    Args:
        log: Its log, or None where there is none.
        step: Step of the head that is reported.

    Raises:
        UsageError: matplotlib is not installed.
    """
    if log is None or not log.values:
        return f"""<section>
<h2>Training</h2>
<p class="note">No training curves: there is no {METRICS} with metrics beside the folder of the \
head.</p>
</section>"""
    charts = []
    for name, title, is_share in _CURVES:
        curves = [(label, _curve(log.values, key)) for label, key in _keys(name)]
        series = [Series(label=label, points=points) for label, points in curves if points]
        charts.append(
            Chart(title=title, x_label="step", series=series, is_share=is_share, mark=step)
        )
    keys = [(key, f"{title}, {label}") for n, title, _ in _CURVES for label, key in _keys(n)]
    keys = [(key, head) for key, head in keys if _curve(log.values, key)]
    every = math.ceil(len(log.values) / _MOST_ROWS)
    rows = [
        [f"{at:,}", *(f"{values[key]:.4g}" if key in values else "-" for key, _ in keys)]
        for number, (at, values) in enumerate(log.values.items())
        if number % every == 0
        or number == len(log.values) - 1
        or any(key.startswith("eval_") for key in values)
    ]
    thinned = f", one in {every} of its lines without held-out figures" if every > 1 else ""
    skipped = f" {log.unreadable} of its lines could not be read." if log.unreadable else ""
    return f"""<section>
<h2>Training</h2>
<p class="note">From <code>{text(log.path.name)}</code>.{skipped} The dashed line is the \
step of this head, {step:,}.</p>
{plots(charts, "training")}
<details><summary>Figures by step</summary>
{table("Training log" + thinned, ["step", *(head for _, head in keys)], rows)}
</details>
</section>"""


def _keys(name: str) -> tuple[tuple[str, str], ...]:
    return ("training", name), ("held-out", f"eval_{name}")


def _curve(log: Log, key: str) -> list[Point]:
    return [Point(x=step, y=values[key]) for step, values in log.items() if key in values]
