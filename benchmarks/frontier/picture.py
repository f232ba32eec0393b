"""Draws the curves: gold reward against KL, with intervals, as an SVG file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.frontier.methods import BASE
from mav.pipeline.reporting.plots import require_matplotlib

_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mav",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#c9d0d8",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}
_MARKERS: Final = "osD^vP*Xph"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of a table's rows, each method at the setting that was chosen.

    Nothing in it depends on the time or on the user's own settings of matplotlib.

    Args:
        rows: Rows as `summary.rows_of` returns them.
        path: The file.

    Raises:
        UsageError: matplotlib is not installed.
    """
    new_figure = require_matplotlib("--picture")
    import matplotlib

    base = next((row["points"][0]["reward"] for row in rows if row["method"] == BASE.name), None)
    file = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = new_figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        curves = [row for row in rows if row["method"] != BASE.name and row["chosen"]]
        for number, row in enumerate(curves):
            points = sorted(row["points"], key=lambda point: float(point["kl"]))
            start = [] if base is None else [(0.0, base)]
            xs, ys = zip(*start, *((p["kl"], p["reward"]) for p in points), strict=True)
            color = f"C{number}"
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(xs, ys, color=color, marker=marker, markevery=slice(len(start), None))
            axes.plot([], [], color=color, marker=marker, label=row["label"])
            for point in points:
                low, high = point["reward_interval"]
                axes.vlines(point["kl"], low, high, color=color, linewidth=0.8, alpha=0.6)
        if base is not None:
            axes.axhline(base, color="#5a6775", linewidth=0.8, linestyle=":")
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.6)
        axes.set_xticks(
            [0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"]
        )
        axes.set_xlim(left=0)
        axes.set_xlabel("KL to the base over an answer, nats")
        axes.set_ylabel("gold reward")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", facecolor="white", metadata=nothing)
    path.write_text(file.getvalue(), encoding="utf-8")
