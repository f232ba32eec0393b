"""Choosing the next token of each row of a batch, every row by its own rules and its own seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.decoding import Decoding


class RowSampler:
    """Chooses the tokens of one answer; what other rows do does not change them.

    A seed gives the same answer alone and in any company, as far as the logits are the same.
    """

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        """Begin an answer.

        Args:
            decoding: How its tokens are chosen; beams and seeds of batches are none of it.
            device: Where its logits are.
        """
        self._decoding = decoding
        self._generator: torch.Generator | None = None
        if decoding.samples:
            self._generator = torch.Generator(device)
            if decoding.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(decoding.seed)

    def choose(self, logits: Tensor) -> Tensor:
        """Return the next token, int64 [], for float32 logits [V]."""
        if self._generator is None:
            return logits.argmax()
        probabilities = within_nucleus(
            (logits / self._decoding.temperature).softmax(-1), self._decoding.top_p
        )
        # The smallest of exponential waiting times with these rates is a sample of them, which
        # needs no normalisation.
        waits = torch.empty_like(probabilities).exponential_(generator=self._generator)
        return (probabilities / waits).argmax()


def within_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return probabilities [V] with those outside of the smallest set that holds top_p at 0.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    if top_p >= 1:
        return probabilities
    ordered, places = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    return probabilities.masked_fill(outside.scatter(-1, places, outside), 0.0)


def choose_each(samplers: Sequence[RowSampler], logits: Tensor) -> list[int]:
    """Return the next token of each row, for float32 logits [B, V], moved to the CPU at once."""
    chosen = [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
    tokens: list[int] = torch.stack(chosen).tolist()
    return tokens
