"""Samples the next token of each sequence of a batch, by its own options and seed.

Shape legend: V vocabulary.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.decoding.structured.constraint import Constraint


class SequenceSampler:
    """Samples the tokens of one response, independent of other sequences.

    A seed gives the same response alone and in any company, as far as the logits are the same.
    """

    def __init__(
        self,
        decoding: GenerationOptions,
        device: torch.device,
        prompt: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """Begin a response.

        Args:
            decoding: How its tokens are chosen; without beams.
            device: Where its logits are.
            prompt: Token ids that repetition is counted from.
            constraint: What tokens are chosen among, if not among all.
        """
        self._decoding = decoding
        self._constraint = constraint
        self._there = set(prompt)
        self._came: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        if decoding.samples:
            self._generator = torch.Generator(device)
            if decoding.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(decoding.seed)

    def choose(self, logits: Tensor) -> Tensor:
        """Return the next token, int64 [], for float32 logits [V]."""
        decoding = self._decoding
        if decoding.repetition_penalty != 1 and self._there:
            logits = less_repeated(logits, sorted(self._there), decoding.repetition_penalty)
        logits = adjusted(logits, self._came, decoding)
        if self._constraint is not None:
            logits = self._constraint.masked(logits)
        if self._generator is None:
            return logits.argmax()
        scaled = among_largest(logits / decoding.temperature, decoding.top_k)
        probabilities = within_nucleus(scaled.softmax(-1), decoding.top_p)
        if decoding.min_p:
            least = decoding.min_p * probabilities.max()
            probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        # The smallest of exponential waiting times with these rates is a sample of them, which
        # needs no normalisation.
        waits = torch.empty_like(probabilities).exponential_(generator=self._generator)
        return (probabilities / waits).argmax()

    def came(self, token: int) -> None:
        """Record the token that was chosen."""
        self._there.add(token)
        self._came[token] += 1
        if self._constraint is not None:
            self._constraint.push(token)


def less_repeated(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """Return logits [V], those of tokens divided by a penalty, or multiplied where below 0.

    Source: Keskar et al. 2019, "CTRL: A Conditional Transformer Language Model for Controllable
    Generation"; transformers' rule for logits below 0.
    """
    at = torch.tensor(tokens, device=logits.device)
    given = logits[at]
    return logits.index_put((at,), torch.where(given < 0, given * penalty, given / penalty))


def adjusted(logits: Tensor, came: Mapping[int, int], decoding: GenerationOptions) -> Tensor:
    """Return logits [V] with `logit_bias` added, frequency and presence penalties taken away.

    Source: OpenAI's API, whose penalties count the response and not its prompt.

    Args:
        logits: After the repetition penalty.
        came: How often each token came in the response; none for a token that did not.
        decoding: Says what is added and taken.
    """
    changes = dict(decoding.logit_bias)
    frequency, presence = decoding.frequency_penalty, decoding.presence_penalty
    if frequency or presence:
        for token, count in came.items():
            changes[token] = changes.get(token, 0.0) - (frequency * count + presence)
    if not changes:
        return logits
    at = torch.tensor([*changes], device=logits.device)
    by = torch.tensor([*changes.values()], dtype=logits.dtype, device=logits.device)
    return logits.index_put((at,), logits[at] + by)


def among_largest(logits: Tensor, top_k: int) -> Tensor:
    """Return logits [V] with those below the k-th largest at minus infinity; 0 keeps all."""
    if not 0 < top_k < len(logits):
        return logits
    return logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)


def within_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return probabilities [V] with those outside of the smallest set that holds top_p at 0.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    if top_p >= 1:
        return probabilities
    ordered, places = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.masked_fill(outside.scatter(-1, places, outside), 0.0)


def choose_each(samplers: Sequence[SequenceSampler], logits: Tensor) -> list[int]:
    """Return the next token of each sequence, for float32 logits [B, V], to the CPU at once."""
    chosen = [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
    tokens: list[int] = torch.stack(chosen).tolist()
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.came(token)
    return tokens
