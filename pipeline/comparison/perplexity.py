"""Log-probability and perplexity of answers under the base alone.

A perplexity far above that of the base's own answers shows that a system writes what the base would
not write; one far below, that it repeats itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mav.pipeline.base.failures import explain_failures
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.scoring import label_logprobs, response_logits
from mav.pipeline.preferences.messages import Messages
from mav.pipeline.preferences.prompt_format import PromptFormat
from mav.pipeline.runtime.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Likelihood of an answer.

    Attributes:
        logprob: Natural log-probability, summed over tokens.
        tokens: Number of tokens.
    """

    logprob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(-logprob / tokens); infinite if that exceeds the range of a float."""
        exponent = -self.logprob / self.tokens
        return math.exp(exponent) if exponent < 700 else math.inf


def answer_likelihoods(
    base: BaseModel,
    form: PromptFormat,
    prompts: Sequence[str | Messages],
    responses: Sequence[str],
    ended: Sequence[bool],
    *,
    batch_size: int = 8,
) -> list[Likelihood | None]:
    """Return the likelihoods of answers under a base without a head.

    Args:
        base: The base.
        form: Prompt format.
        prompts: As for `PromptFormat.render`.
        responses: An answer to each.
        ended: Whether each ended by itself, so that its end token counts.
        batch_size: Answers per batch.

    Returns:
        In the same order; None for an answer without text, or one that exceeds the context
        together with its prompt.

    Raises:
        BaseModelError: transformers cannot run the base with its configuration.
        DataError: A prompt is invalid.
    """
    texts: dict[int, tuple[list[int], list[int]]] = {}
    for place, (prompt, response, whole) in enumerate(zip(prompts, responses, ended, strict=True)):
        if not response.strip():
            continue
        ids = form.tokens(form.render(prompt)), form.response_tokens(prompt, response, ended=whole)
        if ids[1] and base.excess(*map(len, ids)) is None:
            texts[place] = ids
    # Longest first, so that running out of memory happens at once.
    order = sorted(texts, key=lambda place: -sum(map(len, texts[place])))
    likelihoods: list[Likelihood | None] = [None] * len(prompts)
    with progress_bar(len(order), "Perplexity", "answer") as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            for place, logprobs in zip(
                places, _logprobs(base, [texts[place] for place in places]), strict=True
            ):
                likelihoods[place] = Likelihood(logprob=math.fsum(logprobs), tokens=len(logprobs))
            bar.update(len(places))
    return likelihoods


@torch.inference_mode()
def _logprobs(base: BaseModel, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Return the log-probabilities of each answer's tokens, from prompts with answers."""
    prompts, responses = zip(*texts, strict=True)
    with explain_failures(base):
        rows = label_logprobs(response_logits(base, prompts, responses), responses)
    return [row[-len(one) :] for row, one in zip(rows, responses, strict=True)]
