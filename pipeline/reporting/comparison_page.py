"""A comparison as one HTML page that needs no network: curves, tables, and answers side by side.

Its one script filters the answers; without scripts all of them are shown.
"""

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mav.pipeline.comparison.intervals import Estimate
from mav.pipeline.comparison.run import Comparison
from mav.pipeline.comparison.summary import Summary
from mav.pipeline.reporting.comparison_answers import SCRIPT, STYLE, answers_section
from mav.pipeline.reporting.comparison_table import (
    gain_head,
    gain_row,
    heading,
    notes,
    text_head,
    text_row,
)
from mav.pipeline.reporting.curves import Curve, CurvePoint, draw_curves
from mav.pipeline.reporting.page import html_page, write_page
from mav.pipeline.reporting.plots import table, text

PAGE: Final = "page.html"
_MORE_STYLE: Final = """
:root{--c0:#1f5fbf;--c1:#c2570c;--c2:#2f7d32;--c3:#8a3ab0;--c4:#a8244c;--c5:#5a6775}
@media screen and (prefers-color-scheme:dark){:root{--c0:#79b0ff;--c1:#ffa868;--c2:#86cf8a;
 --c3:#cf9bea;--c4:#f58ba8;--c5:#9aa7b5}}
body{max-width:80rem}
.curves{font-size:11px}.curves text{fill:currentColor}.curves .title{font-size:13px;font-weight:600}
.curves .grid{stroke:var(--line);stroke-width:.5}.curves .point{font-size:10px}
.curves .level{stroke:currentColor;stroke-dasharray:2 3;stroke-opacity:.6}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.5rem 0;padding:0;list-style:none}
.legend span{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.4em}
@media(max-width:36rem){.curves{font-size:14px}.curves .title{font-size:16px}
 .curves .point{font-size:13px}}
"""
# The page may load nothing and run no other script, whatever an answer contains.
_HASH: Final = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; "
    f"form-action 'none'; base-uri 'none'"
)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison's page, whole or not at all."""
    write_page(path, render_comparison(comparison, datetime.now(UTC)))


def render_comparison(comparison: Comparison, written: datetime) -> str:
    """Return a comparison as HTML.

    Args:
        comparison: What to show.
        written: Time shown on the page, in UTC.
    """
    summary = comparison.summary
    return html_page(
        title=f"MAV comparison: {summary.source}",
        heading="What is written",
        subject=text(heading(summary)),
        written=written,
        sections=(_curves(summary), _figures(summary), answers_section(comparison)),
        policy=_POLICY,
        style=_MORE_STYLE + STYLE,
        script=SCRIPT,
    )


def _curves(summary: Summary) -> str:
    models = [*summary.systems[0].rewards]
    judges = [*dict.fromkeys(name for system in summary.systems for name in system.wins)]
    plots = [
        draw_curves(
            f"Reward, {model}",
            "KL to the base (nats per answer)",
            _series(summary, [system.rewards[model] for system in summary.systems]),
        )
        for model in models
    ]
    plots += [
        draw_curves(
            f"Win rate against {summary.reference}, {name}",
            "KL to the base (nats per answer)",
            _series(
                summary,
                [
                    system.wins[name].rate if name in system.wins else _TIE
                    for system in summary.systems
                ],
            ),
            level=0.5,
        )
        for name in judges
    ]
    drawn = [plot for plot in plots if plot]
    if not drawn:
        return """<p class="note">No curves: they need a reward model or a judge, and \
answers whose KL to the base is known.</p>"""
    names = [curve.name for curve in _series(summary, [system.kl for system in summary.systems])]
    legend = "".join(
        f'<li><span style="background:var(--c{number % 6})"></span>{text(name)}</li>'
        for number, name in enumerate(names)
    )
    return f"""<section>
<h2>Reward and wins by distance from the base</h2>
<p class="note">Bars are 95 % intervals over prompts.</p>
<ul class="legend">{legend}</ul>
<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in drawn)}</div>
</section>"""


_TIE: Final = Estimate(0.5, None, None, 0)
"""A system's win rate against itself."""


def _series(summary: Summary, values: Sequence[Estimate]) -> list[Curve]:
    """Return a curve for each head, beginning at the base, and points for other systems."""
    points = [
        (system, CurvePoint(x=system.kl, y=value, label=system.name))
        for system, value in zip(summary.systems, values, strict=True)
    ]
    base = [point for system, point in points if system.alpha == 0]
    heads = dict.fromkeys(system.head for system, _ in points if system.head is not None)
    curves = [
        Curve(
            name=head,
            points=sorted(
                [*base, *(point for system, point in points if system.head == head)],
                key=lambda point: float(point.label.rpartition("=")[2]),
            ),
        )
        for head in heads
    ]
    if base and not heads:
        curves.append(Curve(name="base", points=base))
    return curves + [
        Curve(name=system.name, points=[point])
        for system, point in points
        if system.head is None and system.alpha != 0 and point.x.value is not None
    ]


def _figures(summary: Summary) -> str:
    gains = [gain_row(summary, system) for system in summary.systems]
    texts = [text_row(system) for system in summary.systems]
    said = "".join(f'<p class="note">{text(note)}</p>' for note in notes(summary))
    return f"""<section>
<h2>Figures</h2>
{table("Reward, wins and distance", gain_head(summary), gains)}
{table("Texts", text_head(), texts)}
{said}</section>"""
