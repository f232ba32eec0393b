"""Answers side by side, as a section of a comparison's page, and the script that filters them.

Without scripts all of them are shown.
"""

from typing import Final

from mav.pipeline.comparison.records import AnswerKey
from mav.pipeline.comparison.run import Comparison
from mav.pipeline.comparison.systems import System
from mav.pipeline.preferences.transcripts import messages_of
from mav.pipeline.reporting.plots import text

STYLE: Final = """
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
SCRIPT: Final = """
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


def answers_section(comparison: Comparison) -> str:
    """Return the answers of all systems to every prompt, and the form that filters them."""
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
    measures = []
    for model, rewards in system.rewards.items():
        reward = rewards.get(key)
        if reward is not None:
            measures.append(f"{model} {reward:.2f}")
    if answer.kl is not None:
        measures.append(f"KL {answer.kl:.2f}")
    if answer.new_tokens is not None:
        measures.append(f"{answer.new_tokens} tokens{', cut' if answer.finish == 'length' else ''}")
    result = system.verdicts.get(key)
    if result is not None:
        measures.append(
            {1.0: "judge: wins", 0.5: "judge: tie", 0.0: "judge: loses"}.get(
                result, f"judge: {result:g}"
            )
        )
    said = answer.response if answer.error is None else f"No answer: {answer.error}"
    return (
        f'<div class="answer" data-system="{text(system.name)}" '
        f'data-place="{key.turn}/{key.sample}"><h4>{text(system.name)}</h4>'
        f'<p class="note">{text(" · ".join(measures))}</p>'
        f'<div class="said">{text(said)}</div></div>'
    )
