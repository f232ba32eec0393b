"""The pairs every method is given: the same tokens, the same held-out prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.preferences.reader import ReadCounts, read_pairs
from mav.pipeline.preferences.sources import DataSource
from mav.pipeline.preferences.tokenization import TokenizedPairs, tokenize_pairs


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which pairs, and how they are cut and divided.

    Attributes:
        base_model: Hub id, folder or `.gguf` file of the base.
        dataset: File of preference pairs.
        limit: Read only this many rows.
        max_length: Most tokens of a prompt with one response.
        eval_fraction: Share of prompts held out, by the hash `mav train` uses.
    """

    base_model: str
    dataset: str
    limit: int | None = None
    max_length: int = 512
    eval_fraction: float = 0.29


@dataclass(frozen=True, kw_only=True)
class Split:
    """Tokenized pairs in the order a cache stores them, and what part each belongs to.

    Attributes:
        pairs: All pairs.
        training: Indices of those to train on.
        held_out: Indices of those to evaluate on.
    """

    pairs: TokenizedPairs
    training: list[int]
    held_out: list[int]

    def sequence_tokens(self, chosen: list[int]) -> int:
        """Tokens of these pairs where each answer runs behind a prompt of its own."""
        return int(sum(2 * len(p) + len(c) + len(r) for p, c, r in map(self.pairs.parts, chosen)))


def load_split(settings: DataSettings, tokenizer: Any) -> Split:
    """Read, tokenize and divide the pairs as `mav extract` and `mav train` do."""
    source = DataSource(id=settings.dataset, limit=settings.limit)
    pairs = tokenize_pairs(read_pairs(source, ReadCounts()), tokenizer, settings.max_length)
    held_out = in_subset(
        pairs.prompt_id, PairSubset(split="held-out", fraction=settings.eval_fraction)
    )
    return Split(
        pairs=pairs,
        training=np.flatnonzero(~held_out).tolist(),
        held_out=np.flatnonzero(held_out).tolist(),
    )
