"""Shards: Zarr reads what is encoded here, what Zarr writes is read here, and damage is found."""

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype

from mav.cache_schema.arrays import ArrayLayout
from mav.cache_schema.choices import Compression
from mav.cache_schema.shards import (
    decode_shard,
    encode_shard,
    read_shard,
    shard_bytes,
)
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.caches.shard_cases import (
    COMPRESSIONS,
    LEFT_OUT,
    a_layout,
    assemble,
    checksums_of,
    crc32c,
    index_of,
    layouts_and_rows,
    shard_name,
    some_rows,
    stored,
    zarr_array,
)
from tests.support.caches.written_caches import same_bits
from tests.support.profiles import examples


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
