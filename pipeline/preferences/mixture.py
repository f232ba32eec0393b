"""Mixes pairs of several data sets: each pair once, in the given proportions.

What is left out is decided by the pairs' ids, which are hashes of their texts: the same pairs are
kept in whatever order the data sets are given.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import DataError
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, fingerprint


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

    def fingerprint(self, source: int) -> str:
        """Return a SHA-256 of which pairs there are of a source."""
        return fingerprint(self.pairs.pair_id[self.source == source])


def mix(
    parts: Sequence[TokenizedPairs],
    sources: Sequence[DataSource],
    held_out_prompts: AbstractSet[int],
) -> MixedPairs:
    """Put the pairs of several sources together.

    A pair that is in several sources, or twice in one, is kept once: in a source that is held out
    if there is one, else in the first. Where a prompt is held out, all pairs with it of sources
    that are for training are left out. Of sources with weights as many pairs are kept as can be in
    proportion to these.

    Args:
        parts: The pairs of each source.
        sources: The sources.
        held_out_prompts: Ids of the prompts of sources that are held out, also of rows of which no
            pair came.

    Raises:
        DataError: The weights leave nothing of a source.
    """
    source = np.repeat(np.arange(len(parts), dtype=np.uint16), [len(part) for part in parts])
    pair_id = np.concatenate([part.pair_id for part in parts])
    for_training = np.array([not each.is_held_out for each in sources])[source]
    order = np.lexsort((source, for_training, pair_id))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = pair_id[order][1:] != pair_id[order][:-1]
    dropped = tuple(Counter[str]() for _ in sources)
    _count(dropped, source[order[~first]], "duplicate")
    order = order[first]
    if held_out_prompts:
        prompt_id = np.concatenate([part.prompt_id for part in parts])
        apart = np.isin(prompt_id, np.fromiter(held_out_prompts, dtype=np.uint64))
        leaks = (apart & for_training)[order]
        _count(dropped, source[order[leaks]], "held_out_prompt")
        order = order[~leaks]
    within = _within_weights(source[order], sources)
    _count(dropped, source[order[~within]], "beyond_weight")
    order = order[within]
    return MixedPairs(pairs=_taken(parts, order, dropped), source=source[order], dropped=dropped)


def _within_weights(source: NDArray[np.uint16], sources: Sequence[DataSource]) -> NDArray[np.bool_]:
    """Return which pairs, given in the order of their ids, are kept."""
    keep = np.ones(len(source), dtype=np.bool_)
    weights = {at: each.weight for at, each in enumerate(sources) if each.weight is not None}
    if not weights:
        return keep
    unit = min(int((source == number).sum()) / weight for number, weight in weights.items())
    for number, weight in weights.items():
        places = np.flatnonzero(source == number)
        # Rounded: a product that should be a whole number may be a hair below it.
        most = round(unit * weight)
        if most == 0:
            raise DataError(
                f"weight of {sources[number].id}: got {weight}, of which nothing is left beside "
                f"the other data sets, the scarcest of which has {unit:.3g} pairs for a weight of "
                f"1; give weights that are closer to each other, or more data"
            )
        keep[places[most:]] = False
    return keep


def _count(dropped: Sequence[Counter[str]], source: NDArray[np.uint16], cause: str) -> None:
    for number, count in zip(*np.unique(source, return_counts=True), strict=True):
        dropped[int(number)][cause] += int(count)


def _taken(
    parts: Sequence[TokenizedPairs], order: NDArray[Any], dropped: Sequence[Counter[str]]
) -> TokenizedPairs:
    begins = np.cumsum([0, *(len(part.tokens) for part in parts)])

    def column(name: str) -> NDArray[Any]:
        column: NDArray[Any] = np.concatenate([getattr(part, name) for part in parts])[order]
        return column

    moved = [part.bounds + begin for part, begin in zip(parts, begins, strict=False)]
    truncated, cut = column("prompt_is_truncated"), column("response_is_cut")
    return dataclasses.replace(
        parts[0],
        tokens=parts[0].tokens
        if len(parts) == 1
        else np.concatenate([part.tokens for part in parts]),
        bounds=np.concatenate(moved)[order],
        pair_id=column("pair_id"),
        prompt_id=column("prompt_id"),
        source_row=column("source_row"),
        prompt_is_truncated=truncated,
        response_is_cut=cut,
        dropped=sum([*(part.dropped for part in parts), *dropped], Counter()),
    )
