"""Log-probabilities of tokens under base and head, of new tokens and of a prompt's.

Shape legend: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Natural logarithms of one token's probabilities, before `GenerationOptions` change them.

    Attributes:
        aligned: Of the token, under base and head.
        base: Of the token, under the base alone.
        top: The most probable tokens under base and head: id, log-probability.
    """

    aligned: float
    base: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(
    tokens: Sequence[int], logits_TV: Tensor, base_TV: Tensor, top: int
) -> list[LogProbs]:
    """Return the log-probabilities of tokens, each under the logits in its place.

    Args:
        tokens: Token ids, [T].
        logits_TV: Float32 logits of base and head that predict them.
        base_TV: Those of the base alone.
        top: How many of the most probable tokens to tell beside each.
    """
    index = torch.tensor(tokens, dtype=torch.int64, device=logits_TV.device)[:, None]
    # As floats at once: one copy from the device for all tokens.
    aligned, base = (
        (logits.gather(-1, index)[:, 0] - logits.logsumexp(-1)).tolist()
        for logits in (logits_TV, base_TV)
    )
    best = logits_TV.topk(top)
    values = (best.values - logits_TV.logsumexp(-1, keepdim=True)).tolist()
    return [
        LogProbs(aligned=own, base=plain, top=tuple(zip(ids, others, strict=True)))
        for own, plain, ids, others in zip(
            aligned, base, best.indices.tolist(), values, strict=True
        )
    ]
