"""The sizes of a head: what a configuration holds, and what they are if they are not given."""

from dataclasses import dataclass
from typing import Final

from mav.cache_schema.manifest import BaseModelRecord

PUBLISHED_POOLED_SIZE: Final = 4096
PUBLISHED_EXPANSION_SIZE: Final = 16384
_LARGEST_SHARE: Final = 3
"""A default head has at most one third of the base's parameters."""
_MULTIPLES: Final = (64, 8)
"""A width is rounded down to a multiple of the first of these that does not make it zero."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of a head.

    Attributes:
        num_layers: Layers of the base it reads, K.
        pooled_size: Width each layer's state is pooled to, W.
        expansion_size: Width of the widest layer, E.
        vocab_size: Rows of the base's output embedding, V.
        dropout: Share of fused features dropped in training.
    """

    num_layers: int
    pooled_size: int
    expansion_size: int
    vocab_size: int
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_layers", "pooled_size", "expansion_size", "vocab_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout!r}, expected 0 or more, less than 1")

    @property
    def fusion_parameters(self) -> int:
        """Parameters of the fusion layer, (K W + 1) W."""
        return (self.num_layers * self.pooled_size + 1) * self.pooled_size

    @property
    def alignment_parameters(self) -> int:
        """Parameters of the alignment network, (W + 1) E + (E + 1) V; heads are named by it."""
        expand = (self.pooled_size + 1) * self.expansion_size
        return expand + (self.expansion_size + 1) * self.vocab_size

    @property
    def total_parameters(self) -> int:
        """Parameters of the head, fusion layer included."""
        return self.fusion_parameters + self.alignment_parameters


def default_pooled_size(hidden_size: int) -> int:
    """Return W: the published width, or the base's where that is less."""
    return min(PUBLISHED_POOLED_SIZE, hidden_size)


def default_expansion_size(base: BaseModelRecord, num_layers: int, pooled_size: int) -> int:
    """Return E: the published one for bases 4,096 wide and wider, else what the base's size allows.

    Args:
        base: The base.
        num_layers: Layers of it that the head reads, K.
        pooled_size: Width each layer's state is pooled to, W.
    """
    if base.hidden_size >= PUBLISHED_POOLED_SIZE:
        return PUBLISHED_EXPANSION_SIZE
    left = base_parameters(base) // _LARGEST_SHARE
    left -= (num_layers * pooled_size + 1) * pooled_size + base.vocab_size
    most = min(PUBLISHED_EXPANSION_SIZE, left // (pooled_size + 1 + base.vocab_size))
    for multiple in _MULTIPLES:
        if most >= multiple:
            return most // multiple * multiple
    return _MULTIPLES[-1]


def base_parameters(base: BaseModelRecord) -> int:
    """Return a base's parameters, estimated as 12 L H^2 + V H where they are not recorded.

    L is the number of decoder layers and H the hidden size; decoders of the usual form have about
    so many.
    """
    if base.parameters is not None:
        return base.parameters
    width = base.hidden_size
    return 12 * base.num_hidden_layers * width * width + base.vocab_size * width
