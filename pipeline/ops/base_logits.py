"""Reconstructs the base model's logits from the encoding a cache stores them in.

Each encoding is a class with the same one method, `chunk`, which gives float32 logits for a range
of tokens, so that tokens x vocabulary never has to exist at once.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

ALL: Final = slice(None)

_MOST_OF_THE_REST: Final = 1 - 1e-6
"""A label outside of the kept tokens may have nearly all of the rest; rounding must not make it
more."""


class BaseLogits(Protocol):
    """Logits of N tokens, given piece by piece."""

    def chunk(self, start: int, stop: int, columns: slice = ALL) -> Tensor:
        """Return float32 logits on the compute device, which may be modified in place.

        Args:
            start: First token.
            stop: One after the last token.
            columns: Part of the vocabulary.
        """


@dataclass(frozen=True, kw_only=True)
class Unembedding:
    """A base model's output embedding: z = cap * tanh(scale * (W h + b) / cap).

    Operations run in the type of the weight, in the order the models use, so that the result is
    the model's own to the last bit wherever the matrix product is.

    Attributes:
        weight: W [vocab, hidden].
        bias: b [vocab], or None.
        scale: Factor on the logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: Bound of the logits (Gemma 2's `final_logit_softcapping`), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, final_state: Tensor, columns: slice = ALL) -> Tensor:
        """Return float32 logits [..., vocab] for final states [..., hidden].

        Args:
            final_state: The states.
            columns: Part of the vocabulary to return.
        """
        bias = None if self.bias is None else self.bias[columns]
        logits = F.linear(final_state.to(self.weight.dtype), self.weight[columns], bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return capped(logits, self.softcap).float()

    def to(self, device: torch.device) -> "Unembedding":
        """Return it on a device."""
        return Unembedding(
            weight=self.weight.to(device),
            bias=None if self.bias is None else self.bias.to(device),
            scale=self.scale,
            softcap=self.softcap,
        )


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return logits under a soft-cap; the same tensor where there is none."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


@dataclass(frozen=True, kw_only=True)
class FactoredLogits:
    """Encoding `factored`: final states, and the unembedding they go through."""

    final_state: Tensor
    unembedding: Unembedding

    def chunk(self, start: int, stop: int, columns: slice = ALL) -> Tensor:
        """Return float32 [stop - start, vocab]; see `BaseLogits`."""
        return self.unembedding(self.final_state[start:stop], columns)

    def before_softcap(self) -> "FactoredLogits":
        """Return the same logits without their soft-cap, linear in the final state."""
        return dataclasses.replace(
            self, unembedding=dataclasses.replace(self.unembedding, softcap=None)
        )


@dataclass(frozen=True, kw_only=True)
class DenseLogits:
    """Encoding `dense`: the logits themselves, [N, vocab]."""

    logits: Tensor

    def chunk(self, start: int, stop: int, columns: slice = ALL) -> Tensor:
        """Return float32 [stop - start, vocab]; see `BaseLogits`."""
        return self.logits[start:stop, columns].to(torch.float32, copy=True)


@dataclass(frozen=True, kw_only=True)
class TopKLogits:
    """Encoding `topk`: the largest logits; the rest share what probability is left evenly.

    The log-sum-exp over the vocabulary is exact, so probabilities of the kept tokens are too, and
    those of the labels where they are known.

    Attributes:
        logits: float32 [N, k].
        ids: int64 [N, k].
        rest: float32 [N], log-sum-exp over all other tokens.
        vocab_size: Size of the vocabulary.
        labels: int64 [N], tokens whose log-probabilities are known, or None.
        label_logprobs: float32 [N], their log-probabilities.
    """

    logits: Tensor
    ids: Tensor
    rest: Tensor
    vocab_size: int
    labels: Tensor | None = None
    label_logprobs: Tensor | None = None

    def chunk(self, start: int, stop: int, columns: slice = ALL) -> Tensor:
        """Return float32 [stop - start, vocab]; see `BaseLogits`."""
        first, end, _ = columns.indices(self.vocab_size)
        logits, ids, even = self._kept(slice(start, stop))
        # What is kept of other columns goes to one more, which is cut off.
        ids = torch.where((ids >= first) & (ids < end), ids - first, end - first)
        spread = even[:, None].expand(-1, end - first + 1).clone()
        return spread.scatter_(-1, ids, logits)[:, :-1]

    def _kept(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and tokens [C, k or k + 1] that are known, and the logit of the others."""
        logits, ids, rest = self.logits[rows], self.ids[rows], self.rest[rows]
        others = torch.full_like(rest, self.vocab_size - logits.shape[-1])
        if self.labels is not None and self.label_logprobs is not None:
            label = self.labels[rows, None]
            total = torch.logaddexp(logits.logsumexp(-1), rest)
            kept = ids == label
            outside = ~kept.any(-1)
            exact = torch.where(outside, self.label_logprobs[rows] + total, (logits * kept).sum(-1))
            # The other tokens share what the label leaves.
            share = torch.exp(exact - rest).clamp(max=_MOST_OF_THE_REST)
            rest = torch.where(outside, rest + torch.log1p(-share), rest)
            others = others - outside.to(others.dtype)
            logits = torch.cat([logits, exact[:, None]], -1)
            ids = torch.cat([ids, label], -1)
        return logits, ids, rest - others.clamp(min=1).log()


def encode_topk(logits: Tensor, k: int) -> Mapping[str, Tensor]:
    """Encode float32 logits [N, vocab] as `topk_logits`, `topk_ids` and `rest_logsumexp`."""
    top = logits.topk(k, dim=-1)
    rest = logits.scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    return {
        "topk_logits": top.values,
        "topk_ids": top.indices.to(torch.int32),
        "rest_logsumexp": rest,
    }
