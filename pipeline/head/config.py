"""Sizes of an alignment head."""

from dataclasses import dataclass


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
