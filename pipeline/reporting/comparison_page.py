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
from mav.pipeline.comparison.records import AnswerKey
from mav.pipeline.comparison.run import Comparison
from mav.pipeline.comparison.summary import Summary
from mav.pipeline.comparison.systems import System
from mav.pipeline.preferences.transcripts import messages_of
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
.wide td,.wide th{white-space:nowrap;overflow-wrap:normal}
@media(max-width:36rem){.curves{font-size:14px}.curves .title{font-size:16px}
 .curves .point{font-size:13px}}
form{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;padding:.75rem 0;
 background:var(--paper);border-bottom:1px solid var(--line);z-index:1}
@media(min-width:36rem){form{position:sticky;top:0}}
form input[type=search]{flex:1 1 14rem;min-width:0;font:inherit;padding:.4rem .6rem;
 color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:.4rem}
fieldset{border:0;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.25rem .9rem}
legend{float:left;margin-right:.9rem;color:var(--soft)}
label{white-space:nowrap}output{color:var(--soft)}
article{border-top:1px solid var(--line);padding:1rem 0;content-visibility:auto;
 contain-intrinsic-size:auto 20rem}
.turn,.said{white-space:pre-wrap;overflow-wrap:anywhere}
.turn{margin:.25rem 0;max-width:none}.turn b{color:var(--soft);font-weight:500}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:.75rem;
 margin-top:.75rem}
.answer{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .75rem;min-width:0}
.answer h4{margin:0;font-size:.9rem}.answer .note{margin:.1rem 0 .5rem;font-size:.8rem}
[hidden]{display:none!important}
@media print{form{display:none}}
"""
_SCRIPT: Final = """
const form = document.querySelector("form");
const articles = [...document.querySelectorAll("article")].map((article) => ({
  article,
  prompt: article.querySelector(".asked").textContent.toLowerCase(),
  answers: [...article.querySelectorAll(".answer")].map((answer) => ({
    answer,
    system: answer.dataset.system,
    place: answer.dataset.place,
    said: answer.querySelector(".said").textContent,
  })),
}));
function filter() {
  const words = form.search.value.toLowerCase().trim();
  const checked = [...form.querySelectorAll("[name=system]:checked")];
  const wanted = new Set(checked.map((one) => one.value));
  let shown = 0;
  for (const { article, prompt, answers } of articles) {
    const visible = answers.filter(({ system }) => wanted.has(system));
    for (const { answer, system } of answers) answer.hidden = !wanted.has(system);
    const found = !words || prompt.includes(words)
      || visible.some(({ said }) => said.toLowerCase().includes(words));
    const texts = new Map();
    for (const { place, said } of visible) {
      texts.set(place, (texts.get(place) ?? new Set()).add(said.trim()));
    }
    const differ = [...texts.values()].some((several) => several.size > 1);
    article.hidden = !found || (form.differ.checked && !differ);
    shown += !article.hidden;
  }
  form.shown.value = `${shown} of ${articles.length} prompts`;
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
"""
# The page may load nothing and run nothing else, whatever text an answer holds.
_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
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
        written: The time that the page bears, in UTC.
    """
    summary = comparison.summary
    return html_page(
        title=f"MAV comparison: {summary.source}",
        heading="What is written",
        subject=text(heading(summary)),
        written=written,
        sections=(_curves(summary), _figures(summary), _answers(comparison)),
        policy=_POLICY,
        style=_MORE_STYLE,
        script=_SCRIPT,
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
"""Of a system against itself."""


def _series(summary: Summary, values: Sequence[Estimate]) -> list[Curve]:
    """Return a curve for each head, the base at its beginning, and points for other systems."""
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


def _answers(comparison: Comparison) -> str:
    systems = comparison.systems
    boxes = "".join(
        f'<label><input type="checkbox" name="system" value="{text(system.name)}" checked> '
        f"{text(system.name)}</label>"
        for system in systems
    )
    articles = "\n".join(
        _article(comparison, number) for number in range(len(comparison.prompts.questions))
    )
    return f"""<section>
<h2>Answers</h2>
<form hidden>
<input type="search" name="search" placeholder="Search prompts and answers" \
aria-label="Search prompts and answers">
<fieldset><legend>Systems</legend>{boxes}</fieldset>
<label><input type="checkbox" name="differ"> only where they differ</label>
<output name="shown" aria-live="polite"></output>
</form>
{articles}
</section>"""


def _article(comparison: Comparison, number: int) -> str:
    question = comparison.prompts.questions[number]
    turns = messages_of(question.prompt)
    asked = "".join(
        f'<p class="turn"><b>{text(turn["role"].capitalize())}</b> {text(turn["content"].strip())}'
        f"</p>"
        for turn in turns
    )
    places = sorted(
        {
            (key.turn, key.sample)
            for system in comparison.systems
            for key in system.answers
            if key.question == number
        }
    )
    parts, before = [], 0
    for turn, sample in places:
        if turn > before:
            before = turn
            parts.append(
                f'<p class="turn"><b>User</b> {text(question.follow_ups[turn - 1].strip())}</p>'
            )
        cards = [
            _card(system, AnswerKey(number, sample, turn))
            for system in comparison.systems
            if AnswerKey(number, sample, turn) in system.answers
        ]
        parts.append(f'<div class="side">{"".join(cards)}</div>')
    return f"""<article>
<h3>{number + 1}</h3>
<div class="asked">{asked}</div>
{"".join(parts)}
</article>"""


def _card(system: System, key: AnswerKey) -> str:
    answer = system.answers[key]
    told = []
    for model, rewards in system.rewards.items():
        reward = rewards.get(key)
        if reward is not None:
            told.append(f"{model} {reward:.2f}")
    if answer.kl is not None:
        told.append(f"KL {answer.kl:.2f}")
    if answer.new_tokens is not None:
        told.append(f"{answer.new_tokens} tokens{', cut' if answer.finish == 'length' else ''}")
    result = system.verdicts.get(key)
    if result is not None:
        told.append(
            {1.0: "judge: wins", 0.5: "judge: tie", 0.0: "judge: loses"}.get(
                result, f"judge: {result:g}"
            )
        )
    said = answer.response if answer.error is None else f"No answer: {answer.error}"
    return (
        f'<div class="answer" data-system="{text(system.name)}" '
        f'data-place="{key.turn}/{key.sample}"><h4>{text(system.name)}</h4>'
        f'<p class="note">{text(" · ".join(told))}</p><div class="said">{text(said)}</div></div>'
    )
