"""The static objects, which a cache is created with: array descriptions, plan and unembedding."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import MemoryStore

from mav.cache_schema.arrays import ArrayLayout, element_type, layouts, shard_key
from mav.cache_schema.encoding.codecs import ChunkCodec
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.records import ObjectRecord, object_record
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.storage.base import Bytes


def static_objects(
    manifest: Manifest,
    plan: BlockPlan,
    pair_columns: Mapping[str, NDArray[Any]],
    unembedding: Mapping[str, NDArray[Any]],
) -> Iterator[tuple[str, Bytes, ObjectRecord]]:
    """Yield the key, bytes and record of every static object.

    Args:
        manifest: The cache's manifest.
        plan: Its block plan.
        pair_columns: `pair_id`, `prompt_id`, `source` and `source_row`, each [pairs].
        unembedding: `weight` [vocab, hidden] and `bias` [vocab] as stored; empty unless the
            encoding is `factored`.
    """
    arrays: dict[str, NDArray[Any]] = {
        "pairs/response_start": plan.response_start,
        "pairs/response_length": plan.response_length,
        "pairs/block_start": plan.block_start,
        **{f"pairs/{name}": column for name, column in pair_columns.items()},
        **{f"unembedding/{name}": values for name, values in unembedding.items()},
    }
    expected = layouts(manifest)
    assert set(arrays) == {path for path, lay in expected.items() if lay.spec.kind != "block"}
    for key, text in descriptions(manifest).items():
        yield key, text, object_record(text)
    for path, values in arrays.items():
        layout = expected[path]
        assert values.shape == layout.shape, (path, values.shape, layout.shape)
        for number in range(layout.shards):
            rows = values[number * layout.shard[0] : (number + 1) * layout.shard[0]]
            shard = encode_shard(layout, rows)
            data = shard.data.data
            yield shard_key(layout, number), data, object_record(data, shard)


def descriptions(manifest: Manifest) -> dict[str, bytes]:
    """Return the Zarr metadata of all arrays and groups below the root, by key."""
    arrays = layouts(manifest).values()
    return dict(
        _descriptions(tuple((layout, element_type(layout.spec, manifest)) for layout in arrays))
    )


@lru_cache(maxsize=16)
def _descriptions(arrays: tuple[tuple[ArrayLayout, str], ...]) -> Mapping[str, bytes]:
    """Return the metadata of arrays of these layouts and element types.

    Zarr takes longer to make it than all else takes that an empty cache needs, and one extraction
    asks for it several times.
    """
    written: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(written))
    for layout, element in arrays:
        _describe(group, layout, element)
    return {key: written[key].to_bytes() for key in sorted(written) if key != "zarr.json"}


def _describe(group: zarr.Group, layout: ArrayLayout, element: str) -> zarr.Array[Any]:
    codec = ChunkCodec(layout.compression, np.dtype(layout.dtype).itemsize)
    # Every chunk and the index have a checksum: a flipped bit is an error, never data.
    serializer = ShardingCodec(
        chunk_shape=layout.chunk,
        codecs=[BytesCodec(endian="little"), *codec.zarr, Crc32cCodec()],
        index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
    )
    return group.create_array(
        layout.spec.path,
        shape=layout.shape,
        chunks=layout.shard,
        dtype=layout.dtype,
        serializer=serializer,
        compressors=(),
        filters=(),
        fill_value=0,
        dimension_names=layout.spec.dims,
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes={
            "meaning": layout.spec.meaning,
            "element_type": element,
        },
    )
