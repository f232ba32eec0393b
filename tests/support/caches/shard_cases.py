"""Shards for tests: their layouts, rows, and what zarr-python makes of them."""

import hashlib
from pathlib import Path
from typing import Any, get_args

import google_crc32c
import numpy as np
import zarr
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import MemoryStore

from mav.cache_schema.array_table import ArraySpec
from mav.cache_schema.arrays import ArrayLayout
from mav.cache_schema.choices import Compression
from mav.cache_schema.encoding.codecs import (
    ChunkCodec,
)
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.caches.written_caches import random_values

LEFT_OUT = 2**64 - 1
DTYPES = ("uint16", "float16", "float32", "int32", "int64", "uint64")
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def a_layout(
    *,
    dtype: str = "uint16",
    tail: tuple[int, ...] = (3,),
    chunk_rows: int = 2,
    chunks: int = 4,
    compression: Compression = "none",
) -> ArrayLayout:
    """An array of one shard, `chunks` chunks of `chunk_rows` rows of shape `tail`."""
    dims = tuple(f"d{number}" for number in range(1 + len(tail)))
    shape = (chunk_rows * chunks, *tail)
    return ArrayLayout(
        spec=ArraySpec(path="states", dims=dims, dtype=dtype, kind="block", meaning="any"),
        dtype=dtype,
        shape=shape,
        shard=shape,
        chunk=(chunk_rows, *tail),
        compression=compression,
    )


def some_rows(layout: ArrayLayout, rows: int, seed: int = 0) -> NDArray[Any]:
    return random_values(layout.dtype, (rows, *layout.shape[1:]), seed)


@st.composite
def layouts_and_rows(draw: st.DrawFn) -> tuple[ArrayLayout, NDArray[Any]]:
    layout = a_layout(
        dtype=draw(st.sampled_from(DTYPES)),
        tail=tuple(draw(st.lists(st.integers(1, 5), max_size=2))),
        chunk_rows=draw(st.integers(1, 5)),
        chunks=draw(st.integers(1, 6)),
        compression=draw(st.sampled_from(COMPRESSIONS)),
    )
    rows = some_rows(layout, draw(st.integers(1, layout.shape[0])), draw(st.integers(0, 9)))
    # Zeros are the value that Zarr leaves out, and what compresses.
    return layout, np.zeros_like(rows) if draw(st.booleans()) else rows


def zarr_array(layout: ArrayLayout) -> tuple[zarr.Array[Any], MemoryStore]:
    """An empty array of zarr-python's with the metadata that a cache's description has."""
    codec = ChunkCodec(layout.compression, np.dtype(layout.dtype).itemsize)
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=layout.shape,
        chunks=layout.shard,
        dtype=layout.dtype,
        serializer=ShardingCodec(
            chunk_shape=layout.chunk,
            codecs=[BytesCodec(endian="little"), *codec.zarr, Crc32cCodec()],
            index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        ),
        compressors=(),
        filters=(),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    return array, store


def shard_name(layout: ArrayLayout) -> str:
    return "c" + "/0" * len(layout.shape)


def index_of(layout: ArrayLayout, data: NDArray[np.uint8]) -> list[tuple[int, int]]:
    size = 16 * (layout.shard[0] // layout.chunk[0])
    found = np.frombuffer(data[-size - 4 : -4].tobytes(), "<u8").reshape(-1, 2)
    return [(start, length) for start, length in found.tolist() if start != LEFT_OUT]


def crc32c(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def checksums_of(layout: ArrayLayout, data: NDArray[np.uint8]) -> str:
    parts = [data[s : s + n].tobytes()[-4:] for s, n in index_of(layout, data)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def assemble(chunks: list[bytes], index: list[tuple[int, int]]) -> NDArray[np.uint8]:
    """A shard of these bytes, with an index that has the right checksum, whatever it says."""
    plain = np.array(index, "<u8").tobytes()
    return np.frombuffer(b"".join(chunks) + plain + crc32c(plain), np.uint8)


def stored(place: LocalObjectStore, data: NDArray[np.uint8]) -> LocalObjectStore:
    Path(place.location, "x").write_bytes(data.tobytes())
    return place
