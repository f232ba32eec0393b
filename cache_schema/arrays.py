"""The arrays of a cache: names, dimensions, types and chunking, stated once.

Writer, reader, size estimates, docs and tests all derive from `TABLE`. Three kinds of array:

- `block`: one row a response token, or one per block; a shard holds what belongs to one block.
- `plan`: what is known before the base model runs (where each pair lies, and its ids).
- `unembedding`: one copy of the base's output embedding, for factored logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

import numpy as np

from mav.cache_schema.codecs import Compression
from mav.cache_schema.dtypes import STORED_AS
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.quantization import CODES, PER_CHANNEL, PER_TOKEN, QUANTIZED

Kind = Literal["block", "plan", "unembedding"]

INNER_CHUNK_BYTES: Final = 1 << 20
"""Inner chunks of a shard hold about this much: enough to stream, small enough to pick a pair."""
_MOST_CHUNKS: Final = 256
"""Chunks of one object, for arrays that do not lie in blocks."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One row of the table.

    Attributes:
        path: Path of the array inside the store.
        dims: Names of its dimensions; `dimension_sizes` gives their lengths.
        dtype: NumPy type as stored; `states` for the manifest's type of hidden states; `codes` for
            that too, or for the codes of quantized states.
        kind: Who writes it, and how it is chunked.
        meaning: One line for the documentation.
    """

    path: str
    dims: tuple[str, ...]
    dtype: str
    kind: Kind
    meaning: str


TABLE: Final[tuple[ArraySpec, ...]] = (
    ArraySpec(
        path="hidden_states",
        dims=("token", "layer", "width"),
        dtype="codes",
        kind="block",
        meaning="Pooled states of the chosen layers at the position that predicts the token",
    ),
    ArraySpec(
        path="final_hidden_state",
        dims=("token", "hidden"),
        dtype="codes",
        kind="block",
        meaning="Input of the output embedding; left out where hidden_states holds it unpooled",
    ),
    ArraySpec(
        path="hidden_states_token_scale",
        dims=("token", "layer"),
        dtype="float32",
        kind="block",
        meaning="Factor of each token's codes, where states are quantized",
    ),
    ArraySpec(
        path="hidden_states_channel_scale",
        dims=("block", "layer", "width"),
        dtype="float32",
        kind="block",
        meaning="Factor of each channel's codes over a block (int8)",
    ),
    ArraySpec(
        path="final_hidden_state_token_scale",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="The same for final_hidden_state",
    ),
    ArraySpec(
        path="final_hidden_state_channel_scale",
        dims=("block", "hidden"),
        dtype="float32",
        kind="block",
        meaning="The same for final_hidden_state (int8)",
    ),
    ArraySpec(
        path="labels",
        dims=("token",),
        dtype="int32",
        kind="block",
        meaning="The response token that is predicted",
    ),
    ArraySpec(
        path="base_logprobs",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="Natural log-probability of the label under the base model (encodings dense, topk)",
    ),
    ArraySpec(
        path="base_logits",
        dims=("token", "vocab"),
        dtype="states",
        kind="block",
        meaning="Logits of the base model (encoding dense)",
    ),
    ArraySpec(
        path="topk_logits",
        dims=("token", "top_k"),
        dtype="float32",
        kind="block",
        meaning="The largest logits, in descending order (encoding topk)",
    ),
    ArraySpec(
        path="topk_ids",
        dims=("token", "top_k"),
        dtype="int32",
        kind="block",
        meaning="The tokens that topk_logits belong to (encoding topk)",
    ),
    ArraySpec(
        path="rest_logsumexp",
        dims=("token",),
        dtype="float32",
        kind="block",
        meaning="Log-sum-exp of all logits outside the largest (encoding topk)",
    ),
    ArraySpec(
        path="pairs/response_start",
        dims=("pair", "answer"),
        dtype="int64",
        kind="plan",
        meaning="Row of the first token of the chosen (0) and the rejected (1) answer",
    ),
    ArraySpec(
        path="pairs/response_length",
        dims=("pair", "answer"),
        dtype="int32",
        kind="plan",
        meaning="Tokens of each answer, end-of-sequence included",
    ),
    ArraySpec(
        path="pairs/block_start",
        dims=("block_edge",),
        dtype="int64",
        kind="plan",
        meaning="First pair of each block, then the number of pairs",
    ),
    ArraySpec(
        path="pairs/pair_id",
        dims=("pair",),
        dtype="uint64",
        kind="plan",
        meaning="Hash of prompt, chosen and rejected text; pairs are stored in this order",
    ),
    ArraySpec(
        path="pairs/prompt_id",
        dims=("pair",),
        dtype="uint64",
        kind="plan",
        meaning="Hash of the prompt text; decides which pairs are held out",
    ),
    ArraySpec(
        path="pairs/source",
        dims=("pair",),
        dtype="uint16",
        kind="plan",
        meaning="Which of the manifest's data sets the pair came from",
    ),
    ArraySpec(
        path="pairs/source_row",
        dims=("pair",),
        dtype="int64",
        kind="plan",
        meaning="Row of that data set",
    ),
    ArraySpec(
        path="unembedding/weight",
        dims=("vocab", "hidden"),
        dtype="states",
        kind="unembedding",
        meaning="W of the output embedding (encoding factored)",
    ),
    ArraySpec(
        path="unembedding/bias",
        dims=("vocab",),
        dtype="states",
        kind="unembedding",
        meaning="b of the output embedding, where it has one (encoding factored)",
    ),
)

_ENCODED: Final[dict[str, tuple[str, ...]]] = {
    "factored": ("final_hidden_state", "unembedding/weight", "unembedding/bias"),
    "dense": ("base_logits", "base_logprobs"),
    "topk": ("topk_logits", "topk_ids", "rest_logsumexp", "base_logprobs"),
}


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """An array of one particular cache.

    Attributes:
        spec: The row of the table it comes from.
        dtype: NumPy type as stored.
        shape: Full shape.
        shard: Shape of one stored object.
        chunk: Shape of one separately checksummed part of it.
        compression: How chunks are compressed.
    """

    spec: ArraySpec
    dtype: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    compression: Compression

    @property
    def shards(self) -> int:
        """Number of stored objects."""
        return -(-self.shape[0] // self.shard[0])

    def rows_in_block(self, tokens: int) -> int:
        """Return the rows of a block with so many response tokens."""
        return tokens if self.spec.dims[0] == "token" else 1

    @property
    def bytes_per_row(self) -> int:
        """Bytes one index of the first dimension takes, uncompressed."""
        return int(np.dtype(self.dtype).itemsize) * prod(self.shape[1:])


def dimension_sizes(manifest: Manifest) -> dict[str, int]:
    """Return the length of every named dimension in a cache with this manifest."""
    return {
        "token": manifest.plan.blocks * manifest.plan.block_tokens,
        "block": manifest.plan.blocks,
        "layer": len(manifest.states.layers),
        "width": manifest.states.stored_width,
        "hidden": manifest.base.hidden_size,
        "vocab": manifest.base.vocab_size,
        "top_k": manifest.logits.top_k or 0,
        "pair": manifest.data.pairs,
        "answer": 2,
        "block_edge": manifest.plan.blocks + 1,
    }


def is_stored(spec: ArraySpec, manifest: Manifest) -> bool:
    """Tell whether a cache with this manifest holds the array."""
    path, encoding = spec.path, manifest.logits.encoding
    for quantized in QUANTIZED:
        if path in (f"{quantized}{PER_TOKEN}", f"{quantized}{PER_CHANNEL}"):
            how = manifest.storage.states
            if how == "computed" or (path.endswith(PER_CHANNEL) and how != "int8"):
                return False
            path = quantized
    if path == "final_hidden_state" and manifest.final_state_layer is not None:
        return False
    if path == "unembedding/bias" and not manifest.logits.has_bias:
        return False
    owners = [name for name, paths in _ENCODED.items() if path in paths]
    return not owners or encoding in owners


def stored_dtype(spec: ArraySpec, manifest: Manifest) -> str:
    """Return the NumPy type an array is stored in."""
    if spec.dtype == "codes" and manifest.storage.states != "computed":
        return CODES[manifest.storage.states]
    return STORED_AS[manifest.states.dtype] if spec.dtype in ("states", "codes") else spec.dtype


def element_type(spec: ArraySpec, manifest: Manifest) -> str:
    """Return the type of an array's values, where NumPy's type only holds their bits."""
    if spec.dtype == "codes" and manifest.storage.states == "fp8":
        return "float8_e4m3fn"
    if spec.dtype == "codes" and manifest.storage.states == "int8":
        return "int8"
    return manifest.states.dtype if spec.dtype in ("states", "codes") else spec.dtype


def layouts(manifest: Manifest) -> dict[str, ArrayLayout]:
    """Return the layout of every array of a cache with this manifest, by path."""
    sizes = dimension_sizes(manifest)
    found = {}
    for spec in TABLE:
        if not is_stored(spec, manifest):
            continue
        dtype = stored_dtype(spec, manifest)
        shape = tuple(sizes[dim] for dim in spec.dims)
        row = int(np.dtype(dtype).itemsize) * prod(shape[1:])
        rows = max(1, INNER_CHUNK_BYTES // row)
        if spec.kind == "block":
            shard_rows = manifest.plan.block_tokens if spec.dims[0] == "token" else 1
            # Zarr wants shards to be whole multiples of their inner chunks.
            rows = next(n for n in range(min(rows, shard_rows), 0, -1) if shard_rows % n == 0)
        else:
            rows = min(rows, shape[0])
            shard_rows = rows * min(_MOST_CHUNKS, -(-shape[0] // rows))
        found[spec.path] = ArrayLayout(
            spec=spec,
            dtype=dtype,
            shape=shape,
            shard=(shard_rows, *shape[1:]),
            chunk=(rows, *shape[1:]),
            compression=manifest.storage.compression,
        )
    return found


def shard_key(layout: ArrayLayout, number: int) -> str:
    """Return the key of one of an array's objects; of per-token arrays it is the block's."""
    # With dots all objects of an array lie in one folder, which must be durable only once.
    return f"{layout.spec.path}/c.{number}" + ".0" * (len(layout.shape) - 1)


def block_keys(every: Mapping[str, ArrayLayout], block: int) -> set[str]:
    """Return the keys of all objects of a block."""
    return {shard_key(layout, block) for layout in every.values() if layout.spec.kind == "block"}


def bytes_per_token(manifest: Manifest) -> int:
    """Return the uncompressed bytes one response token takes over all arrays."""
    return sum(
        layout.bytes_per_row
        for layout in layouts(manifest).values()
        if layout.spec.dims[0] == "token"
    )
