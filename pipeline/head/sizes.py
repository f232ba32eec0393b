"""How large a head is without being asked: the published sizes, or fewer for a smaller base.

Shape legend: K layers, W pooled width, E expansion, V vocabulary, H the base's hidden size, L its
decoder layers, P its parameters.
"""

from typing import Final

from mav.cache_schema.manifest import BaseModelRecord

PUBLISHED_POOLED_SIZE: Final = 4096
PUBLISHED_EXPANSION_SIZE: Final = 16384
_PARTS_OF_BASE: Final = 3
_ROUND: Final = (64, 8)
"""Widths are multiples of the first of these that leaves something."""


def default_pooled_size(hidden_size: int) -> int:
    """Return W: the published width, or the base's where that is less."""
    return min(PUBLISHED_POOLED_SIZE, hidden_size)


def default_expansion_size(base: BaseModelRecord, num_layers: int, pooled_size: int) -> int:
    """Return E: the published one for bases 4,096 wide and wider, else what a third of P allows.

    A head has (K W + 1) W parameters in its fusion layer, and (W + 1) E + (E + 1) V beside.

    Args:
        base: The base.
        num_layers: K.
        pooled_size: W.
    """
    if base.hidden_size >= PUBLISHED_POOLED_SIZE:
        return PUBLISHED_EXPANSION_SIZE
    left = base_parameters(base) // _PARTS_OF_BASE
    left -= (num_layers * pooled_size + 1) * pooled_size + base.vocab_size
    most = min(PUBLISHED_EXPANSION_SIZE, left // (pooled_size + 1 + base.vocab_size))
    for multiple in _ROUND:
        if most >= multiple:
            return most // multiple * multiple
    return _ROUND[-1]


def base_parameters(base: BaseModelRecord) -> int:
    """Return P; where it is not recorded, 12 L H^2 + V H, which decoders of the usual form have."""
    if base.parameters is not None:
        return base.parameters
    width = base.hidden_size
    return 12 * base.num_hidden_layers * width * width + base.vocab_size * width
