"""Plots and tables as pieces of an HTML page, and the style of the page.

Plots are SVG inside the page, their colours the names of its CSS variables, so that one drawing
serves light, dark and paper. Nothing in them depends on the time, on chance or on the user's own
matplotlib settings.
"""

import html
import importlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mav.cache_schema.errors import UsageError

# Matplotlib wants real colours; these are replaced by what they stand for.
_INK: Final = "#010203"
_LINE: Final = "#010204"
_SERIES: Final = ("#010205", "#010206")
_MEANING: Final = {
    _INK: "currentColor",
    _LINE: "var(--line)",
    _SERIES[0]: "var(--first)",
    _SERIES[1]: "var(--second)",
}
_SETTINGS: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mav",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_FEW_POINTS: Final = 30
STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2733;--soft:#5a6775;--line:#c9d0d8;
 --first:#1f5fbf;--second:#c2570c}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14191f;--ink:#e3e8ee;--soft:#9aa7b5;
 --line:#3d4854;--first:#79b0ff;--second:#ffa868}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:2rem 1.25rem 4rem;background:var(--paper);
 color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
p{max-width:46rem}header p,.note{color:var(--soft);margin:.25rem 0 1rem}
code,td,th,p{overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1rem}
figure{margin:0}svg{display:block;width:100%;height:auto}svg text{font-family:inherit}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.wide{overflow-x:auto;margin:1rem 0;background:linear-gradient(to left,var(--paper) 40%,transparent)
 right/2.5rem 100% no-repeat local,linear-gradient(to left,var(--line),transparent)
 right/1.2rem 100% no-repeat}
.wide:focus-visible{outline:2px solid var(--first);outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{border-bottom:1px solid var(--line);padding:.3rem .9rem .3rem 0;text-align:left;
 vertical-align:top}
thead th{color:var(--soft);font-weight:500;vertical-align:bottom}tbody th{font-weight:500}
.figures :is(td,th){white-space:nowrap;overflow-wrap:normal}
.figures thead th{white-space:normal}.figures thead th:nth-child(n+4){min-width:6rem}
.figures tr>:first-child{position:sticky;left:0;background:var(--paper)}
.facts th{white-space:nowrap}
@media screen and (max-width:36rem){th,td{padding-right:.6rem}
 .facts :is(tr,td,th){display:block;border:0;padding:0}
 .facts tr{border-bottom:1px solid var(--line);padding:.4rem 0}.facts th{color:var(--soft)}}
summary{cursor:pointer;color:var(--soft)}
@media print{.wide{overflow:visible;background:none}
 body{max-width:none;padding:0;font-size:10pt}figure,tr{break-inside:avoid}
 h2{break-after:avoid}.plots{grid-template-columns:1fr 1fr}}
"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A figure and its 95 % interval, if there is one."""

    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a plot, or separate points of it.

    Attributes:
        label: Its name in the legend, which is drawn where there are two.
        points: From left to right.
        joined: Whether a line joins the points.
    """

    label: str
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What to draw.

    Attributes:
        title: Drawn above, and read out where the drawing cannot be seen.
        x_label: What the horizontal axis counts.
        series: One or two.
        names: Names of the positions 0, 1, 2, … of the horizontal axis, where they are not numbers.
        is_share: Whether figures are shares, drawn in per cent, with a line at one half.
        mark: Position of a vertical line, if any.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    names: Sequence[str] = ()
    is_share: bool = False
    mark: float | None = None


def require_matplotlib(option: str) -> Any:
    """Return the class of figures.

    Args:
        option: What needs it, for the message.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise UsageError(f"`{option}` needs matplotlib: pip install matplotlib") from error


def plots(charts: Sequence[Chart], name: str) -> str:
    """Return plots side by side; those without a point are left out.

    Args:
        charts: What to draw.
        name: Begins every id inside, so that plots with different names can share a page; letters.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn = [
        _draw(chart, f"{name}{number}") for number, chart in enumerate(charts) if _has_points(chart)
    ]
    return f'<div class="plots">{"".join(f"<figure>{svg}</figure>" for svg in drawn)}</div>'


def _has_points(chart: Chart) -> bool:
    return any(math.isfinite(point.y) for series in chart.series for point in series.points)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, escaped; the first cell of a row is its heading.

    Where it is wider than the page, it scrolls in a box of its own, beside its first column.
    Without headings of columns, its rows are facts, which are stacked on a narrow page.

    Args:
        caption: Its caption.
        head: Headings of the columns, all empty for none.
        rows: Its rows.
    """
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    kind = "figures" if any(head) else "facts"
    return (
        f'<div class="wide" role="region" aria-label="{text(caption)}" tabindex="0">'
        f'<table class="{kind}"><caption>{text(caption)}</caption>\n'
        f"{f'<thead><tr>{top}</tr></thead>' if any(head) else ''}\n"
        f"<tbody>\n{lines}</tbody></table></div>\n"
    )


def text(value: object) -> str:
    """Return a value as text inside HTML."""
    return html.escape(str(value))


def _draw(chart: Chart, name: str) -> str:
    """Return a plot as an `<svg>` element whose ids begin with `name`."""
    new_figure = require_matplotlib("report")
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = new_figure(figsize=(4.4, 2.7), layout="constrained")
        _fill(figure.subplots(), chart)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue(), chart.title, name)


def _fill(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for color, marker, series in zip(_SERIES, "os", chart.series, strict=False):
        known = [point for point in series.points if math.isfinite(point.y)]
        xs, ys = [point.x for point in known], [point.y for point in known]
        few = not series.joined or len(known) <= _FEW_POINTS
        axes.plot(
            xs,
            ys,
            color=color,
            marker=marker if few else "",
            linestyle="-" if series.joined else "",
            label=series.label,
        )
        bands = [(p.x, *p.interval) for p in known if p.interval is not None]
        if bands:
            at, low, high = zip(*bands, strict=True)
            axes.vlines(at, low, high, color=color, linewidth=1.2, alpha=0.75)
    if chart.is_share:
        axes.axhline(0.5, color=_INK, linewidth=0.8, linestyle=":", alpha=0.6)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if chart.mark is not None:
        axes.axvline(chart.mark, color=_INK, linewidth=0.8, linestyle="--", alpha=0.6)
    if chart.names:
        axes.set_xticks(range(len(chart.names)), chart.names)
        axes.set_xlim(-0.5, len(chart.names) - 0.5)
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_title(chart.title, loc="left")
    axes.set_xlabel(chart.x_label)
    if len(chart.series) > 1:
        axes.legend()


def _inline(svg: str, title: str, name: str) -> str:
    """Turn an SVG file of matplotlib into an element of the page."""
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg role="img" \1>', svg, count=1)
    # A style inside would hold for the whole page, which has it once for all plots.
    title_element = f"<title>{html.escape(title)}</title>"
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", lambda _: title_element, svg, count=1)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    svg = re.sub(r" id=\"", f' id="{name}-', svg)
    svg = re.sub(r" xlink:href=\"#", f' href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for color, meaning in _MEANING.items():
        svg = svg.replace(color, meaning)
    return svg
