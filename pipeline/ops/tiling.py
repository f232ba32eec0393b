"""How tokens x vocabulary is cut into tiles, so that all of it never exists at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import Tensor

CHUNK_ELEMENTS: Final = 1 << 26
"""Elements of the largest temporary: 256 MiB in float32."""

KEPT_ELEMENTS: Final = 1 << 27
"""Elements of the tiles that are kept for the backward pass: 768 MiB in bfloat16 products."""

_TILE_TOKENS: Final = 8192
_COLUMN_STEP: Final = 256
_CPU_TILE_ELEMENTS: Final = 1 << 22
"""On a CPU tiles small enough to stay in its caches are quickest."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How tokens x vocabulary is cut.

    Attributes:
        tokens: Tokens of a tile, C.
        columns: Entries of the vocabulary of a tile, D.
        kept_elements: Elements of the tiles that are kept from forward to backward.
    """

    tokens: int
    columns: int
    kept_elements: int = KEPT_ELEMENTS

    @staticmethod
    def fitting(features: Tensor) -> "Tiling":
        """Return tiles of all tokens, up to a bound, that suit the device of features [N, E]."""
        tokens, width = features.shape
        rows = max(1, min(tokens, _TILE_TOKENS))
        columns = CHUNK_ELEMENTS // rows
        if features.device.type == "cpu":
            # Every tile adds to the gradient of all features, which must not outweigh the tile.
            columns = min(columns, max(_CPU_TILE_ELEMENTS // rows, width // 2))
        return Tiling(tokens=rows, columns=max(1, columns // _COLUMN_STEP) * _COLUMN_STEP)

    def tiles(self, tokens: int, vocab_size: int) -> Iterator[tuple[slice, slice]]:
        """Yield the tokens and the part of the vocabulary of each tile."""
        for row in range(0, tokens, self.tokens):
            for column in range(0, vocab_size, self.columns):
                yield (
                    slice(row, min(row + self.tokens, tokens)),
                    slice(column, min(column + self.columns, vocab_size)),
                )
