"""Shards read straight to where their rows belong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout
from mav.cache_schema.choices import Compression
from mav.cache_schema.shards import (
    decode_shard,
    encode_shard,
    read_shard,
    shard_memory,
)
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.caches.shard_cases import (
    COMPRESSIONS,
    LEFT_OUT,
    a_layout,
    assemble,
    index_of,
    layouts_and_rows,
    some_rows,
    stored,
)
from tests.support.caches.written_caches import same_bits
from tests.support.profiles import examples


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
