"""Answers that are steered only where the base is uncertain: their KL, and the share of tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mav.pipeline.comparison import answer_work
from mav.pipeline.comparison.generation import generate_answers
from mav.pipeline.comparison.summary import summarize_systems
from mav.pipeline.comparison.systems import System, keys_of
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.steering.strengths import as_strength
from mav.pipeline.runtime.choices import HeadKind
from tests.support.steering.comparisons import prompts_of
from tests.support.steering.heads import KINDS
from tests.support.steering.several import steered_by
from tests.support.steering.steered import varied_base
from tests.support.steering.uncertain import entropies, limit_between, limited_logits

TEXTS = ("Hi", "How do I mend a kite?", "Who would lift the old red door in 4 days?", "No.")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_steered_tokens_add_to_the_kl(
    kind: HeadKind, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mav, untouched, prompts = steered_by(varied_base("llama"), kind), varied_base("llama"), TEXTS
    form = mav.joined.form
    begun = [form.tokens(form.render(text)) for text in prompts]
    limit = limit_between(torch.cat([entropies(untouched, torch.tensor([p]))[0] for p in begun]))
    tokens: dict[int, list[int]] = {}
    take = answer_work._take

    def listening(job: Any, output: Any, seconds: float) -> None:
        tokens.setdefault(job.key.question, []).append(output.token)
        take(job, output, seconds)

    monkeypatch.setattr(answer_work, "_take", listening)
    strength: Any = as_strength("a=2", mav.head_names)
    asked = prompts_of(*prompts)
    decoding = GenerationOptions(
        max_new_tokens=9, temperature=temperature, seed=3, steer_above=limit
    )
    path = tmp_path / "answers.jsonl"
    answers = generate_answers(mav, "it", asked, strength, path, decoding=decoding)
    shares = []
    for answer in answers:
        prompt, new = begun[answer.key.question], tokens[answer.key.question]
        text = torch.tensor([[*prompt, *new[:-1]]])
        logits, steered = limited_logits(mav, untouched, text, [[2.0]], [limit])
        plain = untouched.model(text).logits.double().log_softmax(-1)
        aligned = logits.double().log_softmax(-1)
        kl = (aligned.exp() * (aligned - plain)).sum(-1)[0, len(prompt) - 1 :]
        where = steered[0, len(prompt) - 1 :]
        assert answer.kl == pytest.approx(float(kl[where].sum()), rel=1e-3)
        assert answer.steered_tokens == int(where.sum())
        shares.append(float(where.double().mean()))
    assert 0 < sum(shares) < len(shares)
    system = System(name="it", answers={answer.key: answer for answer in answers})
    (summary,) = summarize_systems(asked, [system], "it", keys_of(asked, [system]), ())
    assert summary.steered.value == pytest.approx(sum(shares) / len(shares))
    # The answers of a file that was finished are those that were decoded.
    again = generate_answers(mav, "it", asked, strength, path, decoding=decoding)
    assert [one.steered_tokens for one in again] == [one.steered_tokens for one in answers]
