"""The block plan: the block and the rows of each pair.

It follows from the lengths of the responses alone and is made before the base model runs, so the
place of every block is known in advance and no two blocks share an object.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import UsageError

TARGET_BLOCK_BYTES: Final = 256 << 20
MOST_BLOCK_TOKENS: Final = 8192
LEAST_BLOCK_TOKENS: Final = 256
LEAST_DEFAULT_TOKENS: Final = 512
DEFAULT_BLOCKS: Final = 32
"""An interrupted run loses the block under way, so a small data set has about this many."""


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Pairs packed into blocks; a pair is never split.

    Attributes:
        block_tokens: Rows per block, T.
        block_start: int64 [blocks + 1], first pair of each block, then the number of pairs.
        response_start: int64 [pairs, 2], first row of the chosen and the rejected response.
        response_length: int32 [pairs, 2], tokens of the chosen and the rejected response.
    """

    block_tokens: int
    block_start: NDArray[np.int64]
    response_start: NDArray[np.int64]
    response_length: NDArray[np.int32]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_start) - 1

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.response_length)

    @property
    def tokens(self) -> int:
        """Number of response tokens."""
        return int(self.response_length.sum(dtype=np.int64))

    def pairs_of(self, block: int) -> range:
        """Return the pairs of a block."""
        return range(int(self.block_start[block]), int(self.block_start[block + 1]))

    def first_row(self, block: int) -> int:
        """Return the first row of a block."""
        return block * self.block_tokens

    def used_rows(self, block: int) -> int:
        """Return how many rows of a block hold tokens; they come first."""
        pairs = self.pairs_of(block)
        return int(self.response_length[pairs.start : pairs.stop].sum(dtype=np.int64))


def plan_blocks(response_length: NDArray[np.int32], block_tokens: int) -> BlockPlan:
    """Pack pairs, in order, into blocks of at most `block_tokens` response tokens.

    Inside a block, pairs follow each other, each with the chosen before the rejected response.

    Args:
        response_length: int32 [pairs, 2].
        block_tokens: Rows per block, T.

    Raises:
        UsageError: A pair is longer than a block.
    """
    pair_tokens = response_length.sum(axis=1, dtype=np.int64)
    if len(pair_tokens) and int(pair_tokens.max()) > block_tokens:
        raise UsageError(
            f"block size: got {block_tokens} tokens, but the longest pair has "
            f"{int(pair_tokens.max())}; a pair must fit in a block, so use a larger block size "
            f"or a smaller maximum length"
        )
    ends = np.cumsum(pair_tokens)
    starts = [0]
    filled = 0
    while starts[-1] < len(pair_tokens):
        start = int(np.searchsorted(ends, filled + block_tokens, side="right"))
        starts.append(start)
        filled = int(ends[start - 1])
    block_start = np.array(starts, dtype=np.int64)

    first_pair = np.repeat(block_start[:-1], np.diff(block_start))
    before = ends - pair_tokens
    block = np.repeat(np.arange(len(starts) - 1), np.diff(block_start))
    chosen = block * block_tokens + before - before[first_pair]
    response_start = np.stack([chosen, chosen + response_length[:, 0]], axis=1).astype(np.int64)
    return BlockPlan(
        block_tokens=block_tokens,
        block_start=block_start,
        response_start=response_start,
        response_length=response_length,
    )


def default_block_tokens(token_bytes: int, longest_pair: int, tokens: int) -> int:
    """Choose T: at most about 256 MiB and 8,192 tokens, and less where that would make few blocks.

    Args:
        token_bytes: Bytes per token.
        longest_pair: Response tokens of the longest pair, which must fit.
        tokens: Response tokens of all pairs.
    """
    fitting = min(MOST_BLOCK_TOKENS, TARGET_BLOCK_BYTES // token_bytes)
    shared = max(LEAST_DEFAULT_TOKENS, tokens // DEFAULT_BLOCKS)
    tokens = max(LEAST_BLOCK_TOKENS, min(fitting, shared), longest_pair)
    return -(-tokens // LEAST_BLOCK_TOKENS) * LEAST_BLOCK_TOKENS
