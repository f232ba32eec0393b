"""What several heads, each with a weight, add to the logits of cached tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.head.addition import Addition, addition
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.base_logits import BaseLogits, capped
from mav.pipeline.ops.projection import Projection


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Heads with weights: the vector is sum_i w_i a_i.

    Those that act on the last state are summed in front of the base's output embedding, whose
    soft-cap is around base and sum; the others are added after it.

    Attributes:
        heads: The heads; all of one vocabulary.
        weights: Of each.
    """

    heads: tuple[AlignmentHead, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, head: "AlignmentHead | Mixture") -> "Mixture":
        """Return a mixture as it is, or that of one head with weight 1."""
        return cls(heads=(head,), weights=(1.0,)) if isinstance(head, AlignmentHead) else head

    @property
    def vocab_size(self) -> int:
        """Entries of the vector."""
        return self.heads[0].config.vocab_size

    def additions(self, states: Tensor, base: BaseLogits) -> "MixedAddition":
        """Return what is added at N tokens, for the states [N, K, width] that the heads read.

        Args:
            states: The states.
            base: The base's logits of these tokens.
        """
        parts = [
            (
                weight,
                addition(head, states, base, Projection(head.project.weight, head.project.bias)),
            )
            for head, weight in zip(self.heads, self.weights, strict=True)
        ]
        acts = [head.config.acts_on_state for head in self.heads]
        inside = [part for part, on_state in zip(parts, acts, strict=True) if on_state]
        outside = [part for part, on_state in zip(parts, acts, strict=True) if not on_state]
        if len(inside) > 1:
            # One product with the vocabulary for all of them.
            total = torch.stack([weight * one.features for weight, one in inside]).sum(0)
            inside = [(1.0, replace(inside[0][1], features=total))]
        return MixedAddition(
            base=inside[0][1].base if inside else base,
            softcap=inside[0][1].softcap if inside else None,
            inside=tuple(inside),
            outside=tuple(outside),
        )


@dataclass(frozen=True, kw_only=True)
class MixedAddition:
    """The parts of c(z + alpha u) + alpha v, the logits of N tokens.

    Attributes:
        base: z, the base's logits, before their soft-cap where `softcap` is one.
        softcap: Of c.
        inside: What u is the sum of, with weights.
        outside: What v is the sum of, with weights.
    """

    base: BaseLogits
    softcap: float | None
    inside: tuple[tuple[float, Addition], ...]
    outside: tuple[tuple[float, Addition], ...]

    @property
    def is_finite(self) -> bool:
        """Whether the features are finite."""
        return all(bool(p.features.isfinite().all()) for _, p in (*self.inside, *self.outside))

    def vectors(self, piece: slice) -> tuple[Tensor | None, Tensor | None]:
        """Return u and v of some of the tokens, float32 [n, vocab]; None of what nothing is in."""
        return _summed(self.inside, piece), _summed(self.outside, piece)

    def logits(
        self, base_CV: Tensor, alpha: float, inner: Tensor | None, outer: Tensor | None
    ) -> Tensor:
        """Return the aligned logits, of base logits as `base` has them and u and v."""
        within = base_CV if inner is None else base_CV + alpha * inner
        logits = capped(within, self.softcap)
        return logits if outer is None else logits + alpha * outer


def _summed(parts: Sequence[tuple[float, Addition]], piece: slice) -> Tensor | None:
    total: Tensor | None = None
    for weight, part in parts:
        layer = part.projection
        vector = F.linear(part.features[piece], layer.weight, layer.bias).float()
        weighted = vector if weight == 1 else weight * vector
        total = weighted if total is None else total + weighted
    return total
