"""Accuracy by the length of responses, which shows whether a head has learnt length alone."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mav.pipeline.evaluation.statistics import wilson

_LENGTH_BINS: Final = 5

Longer = Literal["chosen", "neither", "rejected"]


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Pairs whose responses have about as many tokens, both responses counted together.

    Attributes:
        fewest_tokens: Tokens of the shortest pair.
        most_tokens: Tokens of the longest pair.
        pairs: Number of pairs, at least one.
        accuracy: Their reward accuracy.
        interval: Its 95 % interval (Wilson).
    """

    fewest_tokens: int
    most_tokens: int
    pairs: int
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LongerGroup:
    """Pairs by which response has more tokens; a head that learned length alone fails one group.

    Attributes:
        longer: The response that has more tokens.
        pairs: Number of pairs, at least one.
        accuracy: Their reward accuracy.
        interval: Its 95 % interval (Wilson).
    """

    longer: Longer
    pairs: int
    accuracy: float
    interval: tuple[float, float]


def by_length(
    tokens: NDArray[np.int64], right: NDArray[np.bool_], bins: int = _LENGTH_BINS
) -> tuple[LengthBin, ...]:
    """Return the share of right pairs by length, in bins that begin and end at quantiles.

    Args:
        tokens: Tokens of each pair, [P], at least one pair.
        right: Whether each pair is right, [P].
        bins: Most bins; fewer where many pairs are of one length, which share a bin.
    """
    shares = np.arange(1, bins + 1) / bins
    # Each edge is the length of a pair and the last of its bin, so no bin is empty.
    edges = np.unique(np.quantile(tokens, shares, method="inverted_cdf"))
    inside = np.searchsorted(edges, tokens)
    filled = []
    for number in range(len(edges)):
        members = inside == number
        pairs, good = int(members.sum()), int(right[members].sum())
        filled.append(
            LengthBin(
                fewest_tokens=int(tokens[members].min()),
                most_tokens=int(tokens[members].max()),
                pairs=pairs,
                accuracy=good / pairs,
                interval=wilson(good, pairs),
            )
        )
    return tuple(filled)


def by_longer(lengths: NDArray[np.int64], right: NDArray[np.bool_]) -> tuple[LongerGroup, ...]:
    """Return the share of right pairs by which response is longer.

    Args:
        lengths: Tokens of the chosen and the rejected response of each pair, [P, 2].
        right: Whether each pair is right, [P].
    """
    more = np.sign(lengths[:, 0] - lengths[:, 1])
    signs: tuple[tuple[Longer, int], ...] = (("chosen", 1), ("neither", 0), ("rejected", -1))
    counted = [(name, right[more == sign]) for name, sign in signs]
    return tuple(
        LongerGroup(
            longer=name,
            pairs=len(inside),
            accuracy=float(inside.mean()),
            interval=wilson(int(inside.sum()), len(inside)),
        )
        for name, inside in counted
        if len(inside)
    )
