"""Log-probabilities of tokens that are decoded, under base and head and under the base.

Shape legend: B sequences, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Natural logarithms of one token's probabilities, before `GenerationOptions` change them.

    Attributes:
        aligned: Of the token, under base and head.
        base: Of the token, under the base alone.
        top: The most probable tokens under base and head: id, log-probability.
        kl: KL(aligned || base) of the two distributions that the token is one of, in nats.
    """

    aligned: float
    base: float
    top: tuple[tuple[int, float], ...]
    kl: float


def logprobs_of_each(
    wanted: Sequence[int | None],
    chosen: Sequence[int],
    logits_BV: Tensor,
    base_BV: Tensor | None,
) -> list[LogProbs | None]:
    """Return the log-probabilities of the token each sequence has chosen.

    Args:
        wanted: How many of the most probable tokens are wanted, or None for nothing at all, of
            each sequence.
        chosen: Ids.
        logits_BV: Logits of base and head, float32.
        base_BV: Logits of the base alone, float32; None where no sequence wants anything.
    """
    if base_BV is None:
        return [None] * len(chosen)
    each: list[LogProbs | None] = []
    for most, token, logits, base in zip(wanted, chosen, logits_BV, base_BV, strict=True):
        if most is None:
            each.append(None)
            continue
        aligned, plain = logits.log_softmax(-1), base.log_softmax(-1)
        top = aligned.topk(most)
        each.append(
            LogProbs(
                aligned=float(aligned[token]),
                base=float(plain[token]),
                top=tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
                kl=float(divergence(aligned, plain)),
            )
        )
    return each


def divergence(aligned: Tensor, base: Tensor) -> Tensor:
    """Return KL(aligned || base) in nats, float32 [], of log-probabilities, float32 [V].

    Where both are the same numbers it is 0 exactly. Tokens that neither can choose count nothing.
    """
    share = aligned.exp()
    return (share * (aligned - base)).masked_fill(share == 0, 0.0).sum()
