"""Log-probabilities under the base alone: together as one by one, and as a loop has them."""

import math
from dataclasses import replace

import pytest
import torch

from mav.cache_schema.errors import DataError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.comparison.perplexity import Likelihood, answer_likelihoods
from mav.pipeline.preferences.prompt_format import PromptFormat
from tests.support.models.tiny import ARCHITECTURES, tiny_base

PROMPTS = ["Hi", "Who would lift the old red door in 4 days?", "How do I mend a kite?", "And?"]
ANSWERS = ["First look at a kite.", "No.", "Then mend it slowly. Then sell it.", "Who would?"]
ENDED = [True, False, True, False]


def form_of(base: BaseModel) -> PromptFormat:
    return PromptFormat(name="hh", tokenizer=base.tokenizer)


@torch.no_grad()
def token_by_token(base: BaseModel, prompt: str, answer: str, ended: bool) -> Likelihood:
    """From a pass over prompt and answer for each token of the answer."""
    form, total = form_of(base), 0.0
    ids = form.tokens(form.render(prompt))
    answer_ids = form.response_tokens(prompt, answer, ended=ended)
    for token in answer_ids:
        logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
        ids = [*ids, token]
    return Likelihood(logprob=total, tokens=len(answer_ids))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_together_as_token_by_token(architecture: str) -> None:
    base = tiny_base(architecture)
    found = answer_likelihoods(base, form_of(base), PROMPTS, ANSWERS, ENDED, batch_size=3)
    for one, prompt, answer, ended in zip(found, PROMPTS, ANSWERS, ENDED, strict=True):
        expected = token_by_token(base, prompt, answer, ended)
        assert one is not None
        assert one.tokens == expected.tokens
        assert one.logprob == pytest.approx(expected.logprob, rel=1e-4, abs=1e-3)
        assert one.perplexity == pytest.approx(
            math.exp(-expected.logprob) ** (1 / expected.tokens), rel=1e-3
        )


def test_what_cannot_be_scored_is_none() -> None:
    base = tiny_base(max_position_embeddings=64)
    answers = ["", " \n", "No.", "kite " * 40]
    found = answer_likelihoods(base, form_of(base), PROMPTS, answers, [True] * 4)
    assert [one is None for one in found] == [True, True, False, True]
    assert answer_likelihoods(base, form_of(base), [], [], []) == []


def test_a_prompt_that_is_none_is_refused() -> None:
    base = tiny_base()
    with pytest.raises(DataError, match="the last is the assistant's"):
        answer_likelihoods(
            base, form_of(base), [[{"role": "assistant", "content": "x"}]], ["y"], [True]
        )


def test_a_perplexity_may_be_beyond_floats() -> None:
    tiny = Likelihood(logprob=-math.log(8), tokens=3)
    assert tiny.perplexity == pytest.approx(2)
    assert replace(tiny, logprob=-1e5).perplexity == math.inf
