"""Estimating the size of a cache before it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.encoding.codecs import ChunkCodec
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.records import CommitRecord, ObjectRecord, encode_record
from mav.cache_schema.root import encode_root
from mav.cache_schema.shards import shard_bytes
from mav.cache_schema.static_objects import descriptions

METADATA: Final = "metadata"
_DIGEST: Final = "0" * 64
_STATIC_ENTRY: Final = 180
"""Bytes per object in the record of the static objects, without its key."""


@dataclass(frozen=True, kw_only=True)
class ExpectedSize:
    """Expected size of a cache.

    Attributes:
        arrays: Path -> bytes of all its objects; `metadata` for descriptions and records.
        to_write: Bytes that have not been written yet.
    """

    arrays: dict[str, int]
    to_write: int

    @property
    def total(self) -> int:
        """Bytes of the whole cache."""
        return sum(self.arrays.values())


def compressed_share(manifest: Manifest, rows: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Measure the compression of each array on sample rows.

    Args:
        manifest: The cache's manifest.
        rows: Path -> sample rows as stored.

    Returns:
        Path -> compressed size divided by uncompressed size; 1 for arrays without a sample.
    """
    shares = {}
    for path, layout in layouts(manifest).items():
        shares[path] = 1.0
        codec = ChunkCodec(layout.compression, np.dtype(layout.dtype).itemsize)
        if path in rows and not codec.stores_as_is:
            sample = np.ascontiguousarray(rows[path][: layout.shard[0]])
            parts = [
                sample[start : start + layout.chunk[0]].reshape(-1).view(np.uint8)
                for start in range(0, len(sample), layout.chunk[0])
            ]
            shares[path] = sum(len(codec.encode(part)) for part in parts) / sample.nbytes
    return shares


def expected_size(
    manifest: Manifest,
    plan: BlockPlan,
    share: Mapping[str, float],
    *,
    missing: Sequence[int] | None = None,
    begun: bool = False,
) -> ExpectedSize:
    """Return the size of a cache; without compression, exact apart from the records.

    Args:
        manifest: Its manifest.
        plan: Its plan.
        share: Path -> compressed share of its size; see `compressed_share`.
        missing: Blocks that have not been written yet; all if None.
        begun: Whether the root and the static objects are written.
    """
    arrays: dict[str, int] = {}
    blocks = range(plan.blocks) if missing is None else missing
    to_write = 0.0
    for path, layout in layouts(manifest).items():
        if layout.spec.kind == "block":
            sizes = [
                _stored(layout, layout.rows_in_block(plan.used_rows(block)), share[path])
                for block in range(plan.blocks)
            ]
            to_write += sum(sizes[block] for block in blocks)
        else:
            starts = range(0, layout.shape[0], layout.shard[0])
            rows = [min(layout.shard[0], layout.shape[0] - start) for start in starts]
            sizes = [_stored(layout, count, share[path]) for count in rows]
            to_write += 0 if begun else sum(sizes)
        arrays[path] = round(sum(sizes))
    record = _record_bytes(manifest, plan)
    described = descriptions(manifest)
    once = len(encode_root(manifest)) + sum(
        len(text) + _STATIC_ENTRY + len(key) for key, text in described.items()
    )
    arrays[METADATA] = once + plan.blocks * record
    to_write += len(blocks) * record + (0 if begun else once)
    return ExpectedSize(arrays=arrays, to_write=round(to_write))


def _stored(layout: ArrayLayout, rows: int, share: float) -> float:
    """Return the size of an object, assuming that unused rows compress to nothing."""
    full = shard_bytes(layout, rows)
    if layout.compression == "none":
        return full
    filled = -(-rows // layout.chunk[0]) * layout.chunk[0]
    return full - (filled - rows * share) * layout.bytes_per_row


def _record_bytes(manifest: Manifest, plan: BlockPlan) -> int:
    """Return the size of one block's commit record."""
    records = {
        shard_key(layout, plan.blocks): ObjectRecord(
            bytes=shard_bytes(layout, layout.rows_in_block(plan.block_tokens)),
            sha256=_DIGEST,
            checksums=_DIGEST,
        )
        for layout in layouts(manifest).values()
        if layout.spec.kind == "block"
    }
    return len(
        encode_record(
            CommitRecord(
                block=plan.blocks,
                pairs=plan.pairs // plan.blocks,
                tokens=plan.block_tokens,
                attempt=_DIGEST[:32],
                cache=_DIGEST,
                content=_DIGEST,
                objects=records,
            )
        )
    )
