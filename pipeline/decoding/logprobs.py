"""Log-probabilities of tokens that are decoded, under base and head and under the base.

Shape legend: B sequences, T tokens of one, V vocabulary.
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
        kl: KL(aligned || base) of the two distributions that the token is one of, in nats; None
            where it was not asked for.
    """

    aligned: float
    base: float
    top: tuple[tuple[int, float], ...]
    kl: float | None


def logprobs_of(
    tokens: Sequence[int],
    logits_TV: Tensor,
    base_TV: Tensor,
    top: int,
    *,
    with_kl: bool = False,
) -> list[LogProbs]:
    """Return the log-probabilities of tokens of one sequence.

    Args:
        tokens: Token ids, [T].
        logits_TV: Logits of base and head that predict them, float32.
        base_TV: Those of the base alone.
        top: How many of the most probable tokens to name beside each.
        with_kl: Whether to compute the KL, which takes a third as long as all the rest.
    """
    index = torch.tensor(tokens, dtype=torch.int64, device=logits_TV.device)[:, None]
    aligned, base = logits_TV.log_softmax(-1), base_TV.log_softmax(-1)
    best = aligned.topk(top)
    # As lists at once: one copy from the device for all tokens.
    columns = (
        aligned.gather(-1, index)[:, 0].tolist(),
        base.gather(-1, index)[:, 0].tolist(),
        divergence(aligned, base).tolist() if with_kl else [None] * len(tokens),
        best.indices.tolist(),
        best.values.tolist(),
    )
    return [
        LogProbs(aligned=own, base=plain, kl=kl, top=tuple(zip(ids, values, strict=True)))
        for own, plain, kl, ids, values in zip(*columns, strict=True)
    ]


def divergence(aligned: Tensor, base: Tensor) -> Tensor:
    """Return KL(aligned || base) in nats, float32 [T], of log-probabilities, float32 [T, V].

    Where both are the same numbers it is 0 exactly. Tokens that neither can choose count nothing.
    """
    share = aligned.exp()
    return (share * (aligned - base)).masked_fill(share == 0, 0.0).sum(-1)
