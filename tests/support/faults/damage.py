"""Damage to a cache of four blocks, and what verifying, reading and repairing must make of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.root import ROOT
from mav.cache_schema.shards import EncodedShard, encode_shard
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport, repair, verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    Rows,
    all_same_bits,
    begin,
    draft,
    finish,
    held,
    pair_columns,
    random_values,
    read_all,
    unembedding,
)

OPTIONS: Final[dict[str, Any]] = {"has_bias": True}
MANIFEST, PLAN = draft(**OPTIONS)
LAYOUTS: Final = layouts(MANIFEST)
SHARDS: Final = [path for path, lay in LAYOUTS.items() if lay.spec.kind == "block"]
FIXED: Final = [
    *(shard_key(lay, 0) for path, lay in LAYOUTS.items() if lay.spec.kind != "block"),
    *(f"{path}/zarr.json" for path in LAYOUTS),
    "pairs/zarr.json",
]
"""Objects of the layout: written once, and belonging to no block."""
BLOCK, TWIN = 0, 2
"""Two blocks of equally many tokens, so that their shards have equal sizes."""


@dataclass(frozen=True, kw_only=True)
class Caches:
    """A cache to damage, where a copy without damage is, its values, and another of its sizes."""

    damaged: Path
    original: Path
    values: Rows
    other: Path


Damage = Callable[[Path], None]


def delete(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut_a_byte(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_to_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def double(file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


CHANGES_SIZE: Final = (delete, empty, cut_a_byte, cut_to_half, append, double)
ANY: Final = (*CHANGES_SIZE, zero)


def swap(one: Path, other: Path) -> None:
    """Exchange two files of the same size."""
    assert one.stat().st_size == other.stat().st_size
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


def block_shard(path: str, block: int) -> str:
    return shard_key(LAYOUTS[path], block)


def rows_of(block: int, attempt: int = 0) -> Rows:
    """Values of a block, other ones in every array and at every attempt."""
    return {
        path: random_values(
            LAYOUTS[path].dtype,
            (LAYOUTS[path].rows_in_block(PLAN.used_rows(block)), *LAYOUTS[path].shape[1:]),
            seed=1000 * attempt + 100 * number + block,
        )
        for number, path in enumerate(SHARDS)
    }


def make_whole(root: Path, attempt: int = 0) -> list[int]:
    """Begin a cache or go on with it, until it is complete; tell which blocks it lacked."""
    with held(root) as (objects, run):
        there = (root / ROOT).exists()
        writer = CacheWriter(objects, run) if there else begin(objects, run, MANIFEST, PLAN)
        writer.restore_static_objects(PLAN, pair_columns(PLAN), unembedding(MANIFEST))
        missing = writer.missing()
        for block in missing:
            writer.write_block(block, len(PLAN.pairs_of(block)), rows_of(block, attempt))
        writer.complete()
    return missing


def check_sized_damage_is_seen_on_opening(root: Path, key: str) -> None:
    """Check that opening, and a verification that reads nothing, name an object."""
    with pytest.raises(CacheError) as caught:
        CacheReader(root)
    assert key in str(caught.value)
    assert key in complaints(root, full=False)


def check_found_and_never_read(caches: Caches, keys: Mapping[str, int | None]) -> None:
    """Check that a full verification finds damage, and that nothing of it is read.

    Args:
        caches: The cache.
        keys: Damaged objects -> the block they belong to, or None.
    """
    report = verify(open_object_store(caches.damaged), full=True)
    assert not report.sound
    for key, block in keys.items():
        found = report.damaged_static if block is None else report.damaged_blocks.get(block, [])
        assert any(problem.key == key for problem in found), f"{key}: not named in {found}"
    assert set(report.damaged_blocks) == {b for b in keys.values() if b is not None}
    try:
        values = read_all(caches.damaged)
    except CacheError:
        return
    # Zarr's metadata of arrays is for other programs; no value depends on it.
    assert all(key.endswith("/zarr.json") for key in keys), f"{list(keys)}: read in spite of it"
    assert all_same_bits(values, caches.values)


def check_mended(caches: Caches, blocks: list[int]) -> None:
    """Check that a repair and another run make the cache what it was, computing these blocks."""
    root = caches.damaged
    repair(open_object_store(root), verify(open_object_store(root), full=True))
    with pytest.raises(CacheIncompleteError):
        CacheReader(root)
    assert make_whole(root) == blocks
    assert verify(open_object_store(root), full=True).sound
    assert all_same_bits(read_all(root), caches.values)


def check_laid_out_again(caches: Caches, keys: list[str]) -> None:
    """Check that damage to what is not in blocks is found, and mended by another run."""
    check_found_and_never_read(caches, dict.fromkeys(keys))
    objects = open_object_store(caches.damaged)
    repair(objects, verify(objects, full=True))
    assert make_whole(caches.damaged) == []
    assert verify(open_object_store(caches.damaged), full=True).sound
    assert all_same_bits(read_all(caches.damaged), caches.values)


def complaints(root: Path, *, full: bool) -> str:
    """Return all that a verification, which may refuse to begin, has to say."""
    try:
        report: VerifyReport = verify(open_object_store(root), full=full)
    except CacheError as error:
        return str(error)
    return json.dumps(report.to_json())


def leave_an_older_attempt(root: Path, key: str, layout: ArrayLayout, rows: int) -> None:
    """Put a whole shard of other values in place of one, of the same size."""
    values = random_values(layout.dtype, (rows, *layout.shape[1:]), 99)
    older = encode_shard(layout, values).data.tobytes()
    assert len(older) == (root / key).stat().st_size
    (root / key).write_bytes(older)


def check_wrong_encoding_is_found(root: Path) -> None:
    """Check that values changed between the writer's digest and its encoding are found."""

    def faulty(layout: ArrayLayout, rows: NDArray[Any]) -> EncodedShard:
        damaged = rows.copy()
        damaged.view(np.uint8).reshape(-1)[0] ^= 1
        return encode_shard(layout, damaged)

    with held(root) as (objects, run):
        writer = begin(objects, run, MANIFEST, PLAN)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mav.cache_schema.writer.encode_shard", faulty)
            finish(writer, MANIFEST, PLAN)
    report = verify(open_object_store(root), full=True)
    assert set(report.damaged_blocks) == set(range(PLAN.blocks)), report
    assert "values are not those" in report.damaged_blocks[0][0].reason
