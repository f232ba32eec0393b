"""The arrays of one cache: shapes, types, shards and chunks, derived from its manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from mav.cache_schema.array_table import TABLE, ArraySpec
from mav.cache_schema.choices import Compression
from mav.cache_schema.encoding.dtypes import STORED_AS
from mav.cache_schema.encoding.quantization import CODES, PER_CHANNEL, PER_TOKEN, QUANTIZED
from mav.cache_schema.manifest import Manifest

INNER_CHUNK_BYTES: Final = 1 << 20
"""Approximate size of inner chunks: large enough to stream, small enough to read one pair."""
_MOST_CHUNKS: Final = 256
"""Chunks per object, for arrays that are not divided into blocks."""
_ENCODED: Final[dict[str, tuple[str, ...]]] = {
    "factored": ("final_hidden_state", "unembedding/weight", "unembedding/bias"),
    "dense": ("base_logits", "base_logprobs"),
    "topk": ("topk_logits", "topk_ids", "rest_logsumexp", "base_logprobs"),
}
"""Encoding of the logits -> arrays that only some encodings have."""


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """Shape and chunking of an array in one particular cache.

    Attributes:
        spec: Its row of the table.
        dtype: NumPy type as stored.
        shape: Full shape.
        shard: Shape of one stored object.
        chunk: Shape of one chunk of a shard, which has a checksum of its own.
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
        """Return the number of rows of a block with this many response tokens."""
        return tokens if self.spec.dims[0] == "token" else 1

    @property
    def bytes_per_row(self) -> int:
        """Uncompressed bytes per index of the first dimension."""
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
    """Return whether a cache with this manifest holds the array."""
    path, encoding = spec.path, manifest.logits.encoding
    for quantized in QUANTIZED:
        if path in (f"{quantized}{PER_TOKEN}", f"{quantized}{PER_CHANNEL}"):
            storage = manifest.storage.states
            if storage == "computed" or (path.endswith(PER_CHANNEL) and storage != "int8"):
                return False
            path = quantized
    if path == "final_hidden_state" and manifest.final_state_layer is not None:
        return False
    if path == "unembedding/bias" and not manifest.logits.has_bias:
        return False
    encodings = [name for name, paths in _ENCODED.items() if path in paths]
    return not encodings or encoding in encodings


def stored_dtype(spec: ArraySpec, manifest: Manifest) -> str:
    """Return the NumPy type an array is stored in."""
    if spec.dtype == "codes" and manifest.storage.states != "computed":
        return CODES[manifest.storage.states]
    return STORED_AS[manifest.states.dtype] if spec.dtype in ("states", "codes") else spec.dtype


def element_type(spec: ArraySpec, manifest: Manifest) -> str:
    """Return the true type of an array's values, which NumPy may lack."""
    if spec.dtype == "codes" and manifest.storage.states == "fp8":
        return "float8_e4m3fn"
    if spec.dtype == "codes" and manifest.storage.states == "int8":
        return "int8"
    return manifest.states.dtype if spec.dtype in ("states", "codes") else spec.dtype


def layouts(manifest: Manifest) -> dict[str, ArrayLayout]:
    """Return the layout of every array of a cache with this manifest, by path."""
    sizes = dimension_sizes(manifest)
    by_path = {}
    for spec in TABLE:
        if not is_stored(spec, manifest):
            continue
        dtype = stored_dtype(spec, manifest)
        shape = tuple(sizes[dim] for dim in spec.dims)
        row = int(np.dtype(dtype).itemsize) * prod(shape[1:])
        rows = max(1, INNER_CHUNK_BYTES // row)
        if spec.kind == "block":
            shard_rows = manifest.plan.block_tokens if spec.dims[0] == "token" else 1
            # Zarr requires a shard to be a multiple of its inner chunks.
            rows = next(n for n in range(min(rows, shard_rows), 0, -1) if shard_rows % n == 0)
        else:
            rows = min(rows, shape[0])
            shard_rows = rows * min(_MOST_CHUNKS, -(-shape[0] // rows))
        by_path[spec.path] = ArrayLayout(
            spec=spec,
            dtype=dtype,
            shape=shape,
            shard=(shard_rows, *shape[1:]),
            chunk=(rows, *shape[1:]),
            compression=manifest.storage.compression,
        )
    return by_path


def shard_key(layout: ArrayLayout, number: int) -> str:
    """Return the key of one of an array's objects; for arrays of kind `block`, by block number."""
    # Separated by dots, all objects of an array lie in one folder, which is made durable once.
    return f"{layout.spec.path}/c.{number}" + ".0" * (len(layout.shape) - 1)


def block_keys(arrays: Mapping[str, ArrayLayout], block: int) -> set[str]:
    """Return the keys of all objects of a block."""
    return {shard_key(layout, block) for layout in arrays.values() if layout.spec.kind == "block"}


def bytes_per_token(manifest: Manifest) -> int:
    """Return the uncompressed bytes per response token, over all arrays."""
    return sum(
        layout.bytes_per_row
        for layout in layouts(manifest).values()
        if layout.spec.dims[0] == "token"
    )
