"""Shards: Zarr reads what is encoded here, what Zarr writes is read here, and damage is found."""

import hashlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, get_args

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from mav.cache_schema.array_table import ArraySpec
from mav.cache_schema.arrays import ArrayLayout
from mav.cache_schema.choices import Compression
from mav.cache_schema.encoding.codecs import (
    ChunkCodec,
)
from mav.cache_schema.shards import (
    decode_shard,
    encode_shard,
    read_shard,
    shard_bytes,
    shard_memory,
)
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.profiles import examples
from tests.support.written_caches import random_values, same_bits

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


@given(case=layouts_and_rows())
def test_what_is_encoded_is_decoded(case: tuple[ArrayLayout, NDArray[Any]]) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    assert same_bits(decode_shard(layout, shard.data, len(rows), shard.checksums), rows)


@settings(max_examples=examples(1.2))
@given(case=layouts_and_rows())
def test_zarr_reads_what_is_encoded(case: tuple[ArrayLayout, NDArray[Any]]) -> None:
    layout, rows = case
    array, store = zarr_array(layout)
    encoded = encode_shard(layout, rows).data.tobytes()
    buffer = default_buffer_prototype().buffer.from_bytes(encoded)
    store._store_dict[shard_name(layout)] = buffer
    whole = np.asarray(array[...])
    assert same_bits(whole[: len(rows)], rows)
    assert not whole[len(rows) :].any()


@settings(max_examples=examples(1.2))
@given(case=layouts_and_rows())
def test_what_zarr_writes_is_decoded(case: tuple[ArrayLayout, NDArray[Any]]) -> None:
    layout, rows = case
    array, store = zarr_array(layout)
    array[: len(rows)] = rows
    data = np.frombuffer(store._store_dict[shard_name(layout)].to_bytes(), np.uint8)
    assert same_bits(decode_shard(layout, data, len(rows), checksums_of(layout, data)), rows)


@given(case=layouts_and_rows(), order=st.randoms(use_true_random=False))
def test_chunks_may_lie_in_any_order_and_apart(case: Any, order: Any) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    index = index_of(layout, shard.data)
    scattered: list[bytes] = []
    places: dict[int, tuple[int, int]] = {}
    for number in order.sample(range(len(index)), len(index)):
        scattered.append(b"\x07" * order.randint(0, 3))
        start, size = index[number]
        places[number] = (sum(map(len, scattered)), size)
        scattered.append(shard.data[start : start + size].tobytes())
    left_out = layout.shard[0] // layout.chunk[0] - len(index)
    data = assemble(
        scattered, [*(places[n] for n in range(len(index))), *[(LEFT_OUT, LEFT_OUT)] * left_out]
    )
    assert same_bits(decode_shard(layout, data, len(rows), shard.checksums), rows)


@given(case=layouts_and_rows())
def test_checksums_are_those_of_the_chunks_in_order(case: tuple[ArrayLayout, Any]) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    assert shard.checksums == checksums_of(layout, shard.data)


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("tail", [(), (3,), (2, 3)])
def test_shard_bytes_is_the_true_size(rows: int, tail: tuple[int, ...]) -> None:
    layout = a_layout(tail=tail)
    size = len(encode_shard(layout, some_rows(layout, rows)).data)
    assert shard_bytes(layout, rows) == size
    assert size == -(-rows // 2) * (2 * prod(tail) * 2 + 4) + 4 * 16 + 4


def test_unused_rows_are_zeros_and_unused_chunks_are_not_stored() -> None:
    layout = a_layout(tail=(), chunk_rows=2, chunks=3)
    data = encode_shard(layout, np.array([5], "uint16")).data.tobytes()
    assert data[:4] == b"\x05\0\0\0"
    assert data[4:8] == crc32c(data[:4])
    assert data[8:24] == (0).to_bytes(8, "little") + (8).to_bytes(8, "little")
    assert data[24:56] == b"\xff" * 32
    assert data[56:] == crc32c(data[8:56])


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_flipped_bit_is_an_error(compression: Compression, rows: int) -> None:
    layout = a_layout(compression=compression)
    shard = encode_shard(layout, some_rows(layout, rows))
    for place in range(len(shard.data)):
        for bit in range(8):
            damaged = shard.data.copy()
            damaged[place] ^= 1 << bit
            with pytest.raises(ValueError):
                decode_shard(layout, damaged, rows, shard.checksums)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_cut_is_an_error(compression: Compression) -> None:
    layout = a_layout(compression=compression)
    shard = encode_shard(layout, some_rows(layout, 7))
    for size in range(len(shard.data)):
        for part in (shard.data[:size], shard.data[len(shard.data) - size :]):
            with pytest.raises(ValueError):
                decode_shard(layout, part, 7, shard.checksums)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 6, 8])
def test_another_number_of_rows_is_an_error_where_it_needs_other_chunks(rows: int) -> None:
    layout = a_layout()
    shard = encode_shard(layout, some_rows(layout, 3))
    if rows == 4:  # the same two chunks
        assert len(decode_shard(layout, shard.data, rows, shard.checksums)) == 4
        return
    with pytest.raises(ValueError, match="does not hold exactly the"):
        decode_shard(layout, shard.data, rows, shard.checksums)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_another_shard_that_is_whole_is_an_error(compression: Compression) -> None:
    layout = a_layout(compression=compression)
    committed = encode_shard(layout, some_rows(layout, 8, seed=1))
    other = encode_shard(layout, some_rows(layout, 8, seed=2))
    with pytest.raises(ValueError, match="not those that were committed"):
        decode_shard(layout, other.data, 8, committed.checksums)


def two_chunks() -> tuple[ArrayLayout, str, list[bytes]]:
    layout = a_layout(chunks=3)
    shard = encode_shard(layout, some_rows(layout, 4))
    places = index_of(layout, shard.data)
    return layout, shard.checksums, [shard.data[s : s + n].tobytes() for s, n in places]


NOTHING = (LEFT_OUT, LEFT_OUT)


@pytest.mark.parametrize(
    ("message", "index"),
    [
        ("does not hold exactly the 2", [(0, 16), NOTHING, NOTHING]),
        ("does not hold exactly the 2", [(0, 16), (16, 16), (16, 16)]),
        ("does not hold exactly the 2", [(0, 16), (LEFT_OUT, 16), NOTHING]),
        ("does not hold exactly the 2", [(0, 16), (16, LEFT_OUT), NOTHING]),
        ("places chunk 0 outside", [(0, 3), (16, 16), NOTHING]),
        ("chunk 1", [(0, 16), (17, 16), NOTHING]),
        ("places chunk 1 outside", [(0, 16), (21, 16), NOTHING]),
        ("places chunk 1 outside", [(0, 16), (2**63, 16), NOTHING]),
        ("places chunk 1 outside", [(0, 16), (2**64 - 8, 16), NOTHING]),
        ("places chunk 1 outside", [(0, 16), (16, 2**64 - 8), NOTHING]),
        ("checksum of chunk 1", [(0, 16), (15, 16), NOTHING]),
        ("checksum of chunk 1", [(0, 16), (16, 15), NOTHING]),
        ("not those that were committed", [(16, 16), (0, 16), NOTHING]),
        ("not those that were committed", [(0, 16), (0, 16), NOTHING]),
    ],
)
def test_an_index_that_lies_is_an_error(
    place: LocalObjectStore, message: str, index: list[tuple[int, int]]
) -> None:
    layout, checksums, chunks = two_chunks()
    whole = assemble(chunks, [(0, 16), (16, 16), (LEFT_OUT, LEFT_OUT)])
    assert len(decode_shard(layout, whole, 4, checksums)) == 4
    with pytest.raises(ValueError, match=message):
        decode_shard(layout, assemble(chunks, index), 4, checksums)
    with pytest.raises(ValueError, match=message):
        read_shard(layout, stored(place, assemble(chunks, index)), "x", 4, checksums)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_chunk_of_another_size_is_an_error(compression: Compression) -> None:
    layout = a_layout(compression=compression, chunks=1, tail=())
    wide = a_layout(compression=compression, chunks=1, tail=(2,))
    shard = encode_shard(wide, some_rows(wide, 2))
    with pytest.raises(ValueError, match=r"bytes, expected 4"):
        decode_shard(layout, shard.data, 2, shard.checksums)


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_what_cannot_be_decompressed_is_an_error(compression: Compression) -> None:
    layout = a_layout(compression=compression, chunks=1)
    chunk = b"no such thing as this"
    data = assemble([chunk, crc32c(chunk)], [(0, len(chunk) + 4)])
    with pytest.raises(ValueError):
        decode_shard(layout, data, 2, checksums_of(layout, data))


# Reading straight to where rows belong


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> LocalObjectStore:
    """A folder that holds one object, which every example replaces."""
    return LocalObjectStore(tmp_path_factory.mktemp("place"))


def stored(place: LocalObjectStore, data: NDArray[np.uint8]) -> LocalObjectStore:
    Path(place.location, "x").write_bytes(data.tobytes())
    return place


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        action()
    return str(caught.value)


def dirty_memory(layout: ArrayLayout, rows: int, more: int) -> NDArray[np.uint8]:
    return np.full(shard_memory(layout, rows) + more, 0xA5, np.uint8)


@given(case=layouts_and_rows(), more=st.none() | st.integers(0, 99))
def test_a_shard_is_read_as_it_is_decoded(
    place: LocalObjectStore, case: tuple[ArrayLayout, NDArray[Any]], more: int | None
) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    memory = None if more is None else dirty_memory(layout, len(rows), more)
    used = (layout, stored(place, shard.data), "x", len(rows), shard.checksums)
    found = read_shard(*used, memory)
    assert same_bits(found, rows)
    assert same_bits(decode_shard(layout, shard.data, len(rows), shard.checksums), rows)
    if memory is not None:
        assert np.shares_memory(found, memory)
        # The next of its users may need more of it.
        assert (memory[shard_memory(layout, len(rows)) :] == 0xA5).all()


@given(case=layouts_and_rows(), more=st.integers(0, 99))
def test_a_shard_is_decoded_to_memory(case: tuple[ArrayLayout, NDArray[Any]], more: int) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    memory = dirty_memory(layout, len(rows), more)
    found = decode_shard(layout, shard.data, len(rows), shard.checksums, memory)
    assert same_bits(found, rows)
    assert np.shares_memory(found, memory)


@settings(max_examples=examples(0.8))
@given(cases=st.lists(layouts_and_rows(), min_size=2, max_size=4))
def test_one_memory_does_for_one_shard_after_another(
    place: LocalObjectStore, cases: list[tuple[ArrayLayout, NDArray[Any]]]
) -> None:
    memory = np.zeros(max(shard_memory(layout, len(rows)) for layout, rows in cases), np.uint8)
    for layout, rows in cases:
        shard = encode_shard(layout, rows)
        objects = stored(place, shard.data)
        found = read_shard(layout, objects, "x", len(rows), shard.checksums, memory)
        assert same_bits(found, rows)


def test_a_whole_shard_is_read_once(
    place: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = a_layout()
    rows = some_rows(layout, 7)
    shard = encode_shard(layout, rows)
    monkeypatch.delattr(LocalObjectStore, "read")
    objects = stored(place, shard.data)
    assert same_bits(read_shard(layout, objects, "x", 7, shard.checksums), rows)


@given(case=layouts_and_rows(), data=st.data())
def test_a_flipped_bit_is_the_same_error_in_reading(
    place: LocalObjectStore, case: tuple[ArrayLayout, NDArray[Any]], data: st.DataObject
) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    damaged = shard.data.copy()
    for bit in data.draw(st.sets(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    used = (layout, stored(place, damaged), "x", len(rows), shard.checksums)
    expected = error_of(lambda: decode_shard(layout, damaged, len(rows), shard.checksums))
    assert error_of(lambda: read_shard(*used)) == expected
    assert error_of(lambda: read_shard(*used, dirty_memory(layout, len(rows), 3))) == expected


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_a_flipped_bit_in_any_byte_is_an_error_in_reading(
    place: LocalObjectStore, rows: int
) -> None:
    layout = a_layout(tail=(1,))
    shard = encode_shard(layout, some_rows(layout, rows))
    for byte in range(len(shard.data)):
        damaged = shard.data.copy()
        damaged[byte] ^= 1 << byte % 8
        with pytest.raises(ValueError):
            read_shard(layout, stored(place, damaged), "x", rows, shard.checksums)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_any_other_size_is_an_error_in_reading(
    place: LocalObjectStore, compression: Compression
) -> None:
    layout = a_layout(compression=compression)
    shard = encode_shard(layout, some_rows(layout, 7))
    zeros = np.zeros(40, np.uint8)
    cuts = [shard.data[:size] for size in range(0, len(shard.data), 2)]
    cuts += [shard.data[size:] for size in range(1, len(shard.data), 2)]
    longer = [np.concatenate([shard.data, zeros[:size]]) for size in (1, 3, 4, 16, 40)]
    longer += [np.concatenate([zeros[:size], shard.data]) for size in (1, 16)]
    for other in [*cuts, *longer]:
        with pytest.raises(ValueError):
            read_shard(layout, stored(place, other), "x", 7, shard.checksums)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_another_whole_shard_is_an_error_in_reading(
    place: LocalObjectStore, compression: Compression
) -> None:
    layout = a_layout(compression=compression)
    committed = encode_shard(layout, some_rows(layout, 8, seed=1))
    objects = stored(place, encode_shard(layout, some_rows(layout, 8, seed=2)).data)
    with pytest.raises(ValueError, match="not those that were committed"):
        read_shard(layout, objects, "x", 8, committed.checksums)


@given(case=layouts_and_rows(), order=st.randoms(use_true_random=False), dirty=st.booleans())
def test_chunks_may_lie_in_any_order_in_reading(
    place: LocalObjectStore, case: Any, order: Any, dirty: bool
) -> None:
    layout, rows = case
    shard = encode_shard(layout, rows)
    index = index_of(layout, shard.data)
    places = [(LEFT_OUT, LEFT_OUT)] * (layout.shard[0] // layout.chunk[0])
    chunks: list[bytes] = []
    for number in order.sample(range(len(index)), len(index)):
        start, size = index[number]
        places[number] = (sum(map(len, chunks)), size)
        chunks.append(shard.data[start : start + size].tobytes())
    objects = stored(place, assemble(chunks, places))
    memory = dirty_memory(layout, len(rows), 5) if dirty else None
    found = read_shard(layout, objects, "x", len(rows), shard.checksums, memory)
    assert same_bits(found, rows)


def test_a_shard_that_is_not_there(place: LocalObjectStore) -> None:
    for compression in COMPRESSIONS:
        with pytest.raises(FileNotFoundError):
            read_shard(a_layout(compression=compression), place, "none", 2, "")
