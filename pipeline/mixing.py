"""Pairs of several data sets put together: each pair once, in the proportions that are wanted.

What is left out is decided by the pairs' ids, which are hashes of their texts: the same pairs are
kept whatever order the data sets come in, and with more of a data set, those kept before stay.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data_sources import DataSource
from pipeline.tokenizing import TokenizedPairs


@dataclass(frozen=True, kw_only=True)
class MixedPairs:
    """The pairs of all sources, in stored order.

    Attributes:
        pairs: The pairs; `dropped` and the other counts are those of all sources.
        source: uint16 [pairs], which source each came from.
        dropped: Of each source, pairs that were left out here, by cause.
    """

    pairs: TokenizedPairs
    source: NDArray[np.uint16]
    dropped: tuple[Counter[str], ...]

    def kept(self, source: int) -> int:
        """Return how many pairs of a source there are."""
        return int((self.source == source).sum())


def mix(parts: Sequence[TokenizedPairs], sources: Sequence[DataSource]) -> MixedPairs:
    """Put the pairs of several sources together.

    A pair that is in several sources, or twice in one, is kept once: in a source that is held out
    if there is one, else in the first. Of sources with weights as many pairs are kept as can be in
    proportion to these.

    Args:
        parts: The pairs of each source.
        sources: The sources.
    """
    source = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part) for part in parts])
    pair_id = np.concatenate([part.pair_id for part in parts])
    for_training = np.array([not one.is_held_out for one in sources])[source]
    order = np.lexsort((source, for_training, pair_id))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = pair_id[order][1:] != pair_id[order][:-1]
    dropped = tuple(Counter[str]() for _ in sources)
    _count(dropped, source[order[~first]], "duplicate")
    order = order[first]
    within = _within_weights(source[order], sources)
    _count(dropped, source[order[~within]], "beyond_weight")
    order = order[within]
    return MixedPairs(pairs=_taken(parts, order, dropped), source=source[order], dropped=dropped)


def _within_weights(source: NDArray[np.uint16], sources: Sequence[DataSource]) -> NDArray[np.bool_]:
    """Return which pairs, given in the order of their ids, are kept."""
    keep = np.ones(len(source), dtype=np.bool_)
    weights = {number: one.weight for number, one in enumerate(sources) if one.weight is not None}
    if not weights:
        return keep
    unit = min(int((source == number).sum()) / weight for number, weight in weights.items())
    for number, weight in weights.items():
        places = np.flatnonzero(source == number)
        # Rounded: a product that should be a whole number may be a hair below it.
        keep[places[round(unit * weight) :]] = False
    return keep


def _count(dropped: Sequence[Counter[str]], source: NDArray[np.uint16], cause: str) -> None:
    for number, count in zip(*np.unique(source, return_counts=True), strict=True):
        dropped[int(number)][cause] += int(count)


def _taken(
    parts: Sequence[TokenizedPairs], order: NDArray[Any], dropped: Sequence[Counter[str]]
) -> TokenizedPairs:
    begins = np.cumsum([0, *(len(part.tokens) for part in parts)])

    def column(name: str) -> NDArray[Any]:
        found: NDArray[Any] = np.concatenate([getattr(part, name) for part in parts])[order]
        return found

    moved = [part.bounds + begin for part, begin in zip(parts, begins, strict=False)]
    truncated, cut = column("prompt_is_truncated"), column("response_is_cut")
    return dataclasses.replace(
        parts[0],
        tokens=np.concatenate([part.tokens for part in parts]),
        bounds=np.concatenate(moved)[order],
        pair_id=column("pair_id"),
        prompt_id=column("prompt_id"),
        source_row=column("source_row"),
        prompt_is_truncated=truncated,
        response_is_cut=cut,
        dropped=sum([*(part.dropped for part in parts), *dropped], Counter()),
    )
