"""How likely the base alone finds answers: their log-probability and perplexity.

A perplexity far above that of the base's own answers says that a head, or another system, writes
what the base would not; one far below it, that it repeats itself.
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
    """How likely an answer is.

    Attributes:
        logprob: Natural logarithm of its probability, a sum over tokens.
        tokens: How many.
    """

    logprob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(-logprob / tokens); infinite where that exceeds what a float holds."""
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
    """Return how likely answers are under a base, to which no head is attached.

    Args:
        base: The base.
        form: Form of prompts.
        prompts: As `PromptFormat.render` takes them.
        responses: An answer to each.
        ended: Whether each ended by itself, so that the token that ends it counts too.
        batch_size: Answers that run together.

    Returns:
        In the same order; None for an answer without text, and for one that the base cannot read
        together with its prompt.

    Raises:
        BaseModelError: transformers cannot run the base as it is configured.
        DataError: A prompt is none.
    """
    texts: dict[int, tuple[list[int], list[int]]] = {}
    for place, (prompt, response, whole) in enumerate(zip(prompts, responses, ended, strict=True)):
        if not response.strip():
            continue
        ids = form.tokens(form.render(prompt)), form.response_tokens(prompt, response, ended=whole)
        if ids[1] and base.excess(*map(len, ids)) is None:
            texts[place] = ids
    # The longest first: what does not fit into memory shows at once.
    order = sorted(texts, key=lambda place: -sum(map(len, texts[place])))
    found: list[Likelihood | None] = [None] * len(prompts)
    with progress_bar(len(order), "Perplexity", "answer") as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            for place, logprobs in zip(
                places, _logprobs(base, [texts[place] for place in places]), strict=True
            ):
                found[place] = Likelihood(logprob=math.fsum(logprobs), tokens=len(logprobs))
            bar.update(len(places))
    return found


@torch.inference_mode()
def _logprobs(base: BaseModel, texts: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Return the log-probabilities of each answer's tokens, from prompts with answers."""
    prompts, responses = zip(*texts, strict=True)
    with explain_failures(base):
        rows = label_logprobs(response_logits(base, prompts, responses), responses)
    return [row[-len(one) :] for row, one in zip(rows, responses, strict=True)]
