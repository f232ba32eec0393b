"""The kind and sizes of a head: what a configuration holds, and what they are if not given."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from mav.cache_schema.manifest import BaseModelRecord
from mav.pipeline.runtime.choices import HeadKind

PUBLISHED_POOLED_SIZE: Final = 4096
PUBLISHED_EXPANSION_SIZE: Final = 16384
PUBLISHED_RANK: Final = 256
"""Of PALC's bottleneck."""
_LARGEST_SHARE: Final = 3
"""A default head has at most one third of the base's parameters."""
_MULTIPLES: Final = (64, 8)
"""A width is rounded down to a multiple of the first of these that does not make it zero."""


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """One linear layer of a head.

    Attributes:
        inputs: Size of what it is given.
        outputs: Size of what it returns.
        bias: Whether it has one.
    """

    inputs: int
    outputs: int
    bias: bool = True

    @property
    def weights(self) -> int:
        """Entries of its matrix, a multiplication and an addition of each token."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Entries of its matrix and its bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Kind and sizes of a head.

    Attributes:
        num_layers: Layers of the base it reads, K.
        pooled_size: Width each layer's state is pooled to, W.
        vocab_size: Rows of the base's output embedding, V.
        kind: What it is made of and acts on; see `AlignmentHead`.
        expansion_size: Width of the widest layer of an `mlp`, E.
        rank: Width of the narrow layer of the others; None for an `unembedding` without one.
        hidden_size: Width of the base's last state, H, to which an `unembedding` adds.
        fusion_size: Width of the fused features of an `mlp` or `unembedding`; W if None, as of all
            that are trained: merging puts the features of several heads side by side.
        dropout: Share of the fused features (of a `bottleneck` the state) dropped in training.
    """

    num_layers: int
    pooled_size: int
    vocab_size: int
    kind: HeadKind = "mlp"
    expansion_size: int | None = None
    rank: int | None = None
    hidden_size: int | None = None
    fusion_size: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in get_args(HeadKind):
            raise ValueError(f"kind: got {self.kind!r}, expected {', '.join(get_args(HeadKind))}")
        needed = ("num_layers", "pooled_size", "vocab_size", *_NEEDED[self.kind])
        for name in ("num_layers", "pooled_size", "vocab_size", *_OF_SOME_KINDS):
            value = getattr(self, name)
            if name not in needed and value is None:
                continue
            if name not in (*needed, *_ALLOWED[self.kind]):
                raise ValueError(f"{name}: got {value!r}, which a head of kind {self.kind} has not")
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number from 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout!r}, expected 0 or more, less than 1")

    @property
    def acts_on_state(self) -> bool:
        """Whether it adds to the base's last state, and not to its logits."""
        return self.kind == "unembedding"

    @property
    def layers(self) -> Mapping[str, LinearLayer]:
        """Its linear layers by name, in the order they are computed; `project` is the last."""
        narrow = self.kind == "bottleneck"
        inner = self.expansion_size or self.rank
        fused = self.fusion_size or self.pooled_size
        found = {}
        if not narrow:
            inputs = self.num_layers * self.pooled_size
            found["fusion"] = LinearLayer(inputs=inputs, outputs=fused)
        if inner is not None:
            found["expand"] = LinearLayer(inputs=fused, outputs=inner, bias=not narrow)
        found["project"] = LinearLayer(
            inputs=inner or fused,
            outputs=self.hidden_size if self.hidden_size is not None else self.vocab_size,
            bias=not narrow,
        )
        return found

    @property
    def fusion_parameters(self) -> int:
        """Parameters of the fusion layer, (K W + 1) W; 0 where there is none."""
        fusion = self.layers.get("fusion")
        return 0 if fusion is None else fusion.parameters

    @property
    def alignment_parameters(self) -> int:
        """Parameters of all layers after the fusion layer; heads are named by it.

        Of an `mlp` (W + 1) E + (E + 1) V.
        """
        return self.total_parameters - self.fusion_parameters

    @property
    def total_parameters(self) -> int:
        """Parameters of the head, fusion layer included."""
        return sum(layer.parameters for layer in self.layers.values())

    @property
    def decoding_flops(self) -> int:
        """Floating-point operations per decoded token, in addition to the base's own.

        Two for each weight. An `unembedding` has no product with the vocabulary of its own.
        """
        return 2 * self.weights

    @property
    def training_flops(self) -> int:
        """Operations a response token of training takes, the base's logits not counted.

        Six for each weight: two forward, and four backward for the gradients of the weight and of
        its input. An `unembedding` also takes W_U f, and the gradient of f through it: 4 V H.
        """
        through = 0 if self.hidden_size is None else 4 * self.vocab_size * self.hidden_size
        return 6 * self.weights + through

    @property
    def weights(self) -> int:
        """Entries of its matrices, biases not counted."""
        return sum(layer.weights for layer in self.layers.values())

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes it has, by the names people read."""
        named = {
            "layers": self.num_layers,
            "pooled": self.pooled_size,
            "fused": self.fusion_size,
            "expansion": self.expansion_size,
            "rank": self.rank,
            "hidden": self.hidden_size,
            "vocabulary": self.vocab_size,
        }
        return {name: size for name, size in named.items() if size is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the fields it has, as plain JSON values; `HeadConfig(**fields)` reads them."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


_OF_SOME_KINDS: Final = ("expansion_size", "rank", "hidden_size", "fusion_size")
_NEEDED: Final[Mapping[HeadKind, tuple[str, ...]]] = {
    "mlp": ("expansion_size",),
    "unembedding": ("hidden_size",),
    "bottleneck": ("rank",),
}
_ALLOWED: Final[Mapping[HeadKind, tuple[str, ...]]] = {
    "mlp": ("fusion_size",),
    "unembedding": ("rank", "fusion_size"),
    "bottleneck": (),
}


def default_pooled_size(hidden_size: int) -> int:
    """Return W: the published width, or the base's where that is less."""
    return min(PUBLISHED_POOLED_SIZE, hidden_size)


def head_config(
    base: BaseModelRecord,
    kind: HeadKind,
    *,
    num_layers: int,
    pooled_size: int,
    expansion_size: int | None = None,
    rank: int | None = None,
    dropout: float | None = None,
) -> HeadConfig:
    """Return the configuration of a new head, in which what is None is what suits the kind.

    Args:
        base: The base.
        kind: What it is made of.
        num_layers: Layers of the base that it reads, K.
        pooled_size: Width each layer's state is pooled to, W.
        expansion_size: Of an `mlp`; by the base's size if None.
        rank: Of a `bottleneck`, 256 if None; of an `unembedding`, none if None.
        dropout: 0.1 if None, but 0 for a `bottleneck`, as published.
    """
    if kind == "mlp":
        expansion_size = expansion_size or default_expansion_size(base, num_layers, pooled_size)
    elif kind == "bottleneck":
        rank = rank or PUBLISHED_RANK
    if dropout is None:
        dropout = 0.0 if kind == "bottleneck" else 0.1
    return HeadConfig(
        kind=kind,
        num_layers=num_layers,
        pooled_size=pooled_size,
        expansion_size=expansion_size,
        rank=rank,
        hidden_size=base.hidden_size if kind == "unembedding" else None,
        vocab_size=base.vocab_size,
        dropout=dropout,
    )


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
