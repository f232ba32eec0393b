"""Objects that are lost, cut, emptied, zeroed, or swapped for others that are whole in themselves.

File systems do this after a crash, copying tools that are interrupted, and people who put a file
back from the wrong copy. Damage that shows in a size must be found when the cache is opened and by
a fast verification; all of it by a full one, naming object and block. None may give a wrong value
when it is read, and a repair with another run of the extraction must mend what can be mended.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import (
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    commit_key,
    decode_record,
    encode_record,
)
from mav.cache_schema.root import ROOT
from mav.cache_schema.shards import EncodedShard, encode_shard
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport, repair, verify
from mav.cache_schema.writer import CacheWriter
from tests.support.written_caches import (
    Rows,
    all_same_bits,
    begin,
    draft,
    finish,
    held,
    pair_columns,
    quick_disk,
    random_values,
    read_all,
    unembedding,
    write,
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


@pytest.fixture(scope="module", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    with quick_disk():
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of the same sizes and other values."""
    folder = tmp_path_factory.mktemp("damage")
    make_whole(folder / "original")
    make_whole(folder / "other", attempt=1)
    return folder / "original", folder / "other"


@pytest.fixture
def caches(originals: tuple[Path, Path], place: Path) -> Caches:
    original, other = originals
    return Caches(
        damaged=shutil.copytree(original, place / "cache"),
        original=original,
        values=read_all(original),
        other=other,
    )


@pytest.mark.parametrize("damage", ANY)
@pytest.mark.parametrize("path", SHARDS)
def test_a_damaged_shard(caches: Caches, path: str, damage: Damage) -> None:
    for block in (BLOCK, 1):
        key = block_shard(path, block)
        damage(caches.damaged / key)
        if damage in CHANGES_SIZE:
            check_sized_damage_is_seen_on_opening(caches.damaged, key)
        check_found_and_never_read(caches, {key: block})
        check_mended(caches, [block])


@pytest.mark.parametrize("path", SHARDS)
def test_a_shard_swapped_with_another_blocks(caches: Caches, path: str) -> None:
    keys = {block_shard(path, block): block for block in (BLOCK, TWIN)}
    swap(*(caches.damaged / key for key in keys))
    check_found_and_never_read(caches, keys)
    check_mended(caches, [BLOCK, TWIN])


def test_a_shard_of_another_array(caches: Caches) -> None:
    """As large as its own, which no two arrays of these caches are."""
    key, other = (block_shard(path, BLOCK) for path in ("labels", "hidden_states"))
    size = (caches.damaged / key).stat().st_size
    (caches.damaged / key).write_bytes((caches.damaged / other).read_bytes()[-size:])
    check_found_and_never_read(caches, {key: BLOCK})
    check_mended(caches, [BLOCK])


@pytest.mark.parametrize("path", SHARDS)
def test_a_shard_left_by_an_older_attempt(caches: Caches, path: str) -> None:
    key = block_shard(path, BLOCK)
    leave_an_older_attempt(caches.damaged, key, LAYOUTS[path], PLAN.used_rows(BLOCK))
    check_found_and_never_read(caches, {key: BLOCK})
    check_mended(caches, [BLOCK])


def test_all_shards_of_a_block_left_by_an_older_attempt(caches: Caches) -> None:
    keys = [block_shard(path, BLOCK) for path in SHARDS]
    for path, key in zip(SHARDS, keys, strict=True):
        shutil.copy(caches.other / key, caches.damaged / key)
        assert (caches.damaged / key).read_bytes() != (caches.original / key).read_bytes(), path
    check_found_and_never_read(caches, dict.fromkeys(keys, BLOCK))
    check_mended(caches, [BLOCK])


def test_several_damaged_blocks_are_all_named(caches: Caches) -> None:
    keys = {block_shard("labels", block): block for block in range(PLAN.blocks)}
    for key in keys:
        zero(caches.damaged / key)
    check_found_and_never_read(caches, keys)
    check_mended(caches, list(range(PLAN.blocks)))


# A shard that was wrong before it was written: a codec at fault, or memory.


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


def test_a_shard_that_was_encoded_wrongly_is_found(tmp_path: Path) -> None:
    check_wrong_encoding_is_found(tmp_path / "cache")


# What is not in blocks


@pytest.mark.parametrize("damage", ANY)
def test_damage_to_what_is_written_once(caches: Caches, damage: Damage) -> None:
    for key in FIXED:
        damage(caches.damaged / key)
        if damage in CHANGES_SIZE:
            check_sized_damage_is_seen_on_opening(caches.damaged, key)
            with held(caches.damaged) as (objects, run), pytest.raises(CacheError, match=key):
                CacheWriter(objects, run).missing()
        check_laid_out_again(caches, [key])


def test_what_was_lost_is_written_again_without_a_repair(caches: Caches) -> None:
    for key in FIXED:
        delete(caches.damaged / key)
    assert make_whole(caches.damaged) == []
    assert all_same_bits(read_all(caches.damaged), caches.values)


def test_plan_objects_swapped_between_arrays(caches: Caches) -> None:
    keys = [shard_key(LAYOUTS[f"pairs/{name}"], 0) for name in ("pair_id", "prompt_id")]
    swap(*(caches.damaged / key for key in keys))
    check_laid_out_again(caches, keys)


@pytest.mark.parametrize("path", [path for path in LAYOUTS if path not in SHARDS])
def test_plan_and_unembedding_left_by_an_older_attempt(caches: Caches, path: str) -> None:
    layout = LAYOUTS[path]
    leave_an_older_attempt(caches.damaged, shard_key(layout, 0), layout, layout.shape[0])
    check_laid_out_again(caches, [shard_key(layout, 0)])


@pytest.mark.parametrize("damage", ANY)
@pytest.mark.parametrize("key", [STATIC_RECORD, ROOT])
def test_without_layout_record_or_root_nothing_is_read_or_written(
    caches: Caches, key: str, damage: Damage
) -> None:
    damage(caches.damaged / key)
    check_sized_damage_is_seen_on_opening(caches.damaged, key)
    with held(caches.damaged) as (objects, run), pytest.raises(CacheError, match=key):
        CacheWriter(objects, run).missing()
    assert (caches.damaged / commit_key(0)).exists()


def test_the_layout_record_of_another_cache(caches: Caches) -> None:
    other = caches.other.with_name("another plan")
    write(other, **OPTIONS, lengths=((3, 2), (4, 1), (1, 1), (7, 3), (6, 2)))
    shutil.copy(other / STATIC_RECORD, caches.damaged / STATIC_RECORD)
    key = shard_key(LAYOUTS["pairs/response_length"], 0)
    check_found_and_never_read(caches, {key: None})


# Records of blocks


@pytest.mark.parametrize("damage", [damage for damage in ANY if damage is not delete])
def test_a_damaged_commit_record(caches: Caches, damage: Damage) -> None:
    key = commit_key(BLOCK)
    damage(caches.damaged / key)
    check_sized_damage_is_seen_on_opening(caches.damaged, key)
    check_found_and_never_read(caches, {key: BLOCK})
    check_mended(caches, [BLOCK])


def test_commit_records_swapped_between_blocks(caches: Caches) -> None:
    swap(*(caches.damaged / commit_key(block) for block in (BLOCK, TWIN)))
    check_sized_damage_is_seen_on_opening(caches.damaged, commit_key(TWIN))
    check_found_and_never_read(caches, {commit_key(b): b for b in (BLOCK, TWIN)})
    check_mended(caches, [BLOCK, TWIN])


def test_a_commit_record_from_another_cache(caches: Caches) -> None:
    shutil.copy(caches.other / commit_key(BLOCK), caches.damaged / commit_key(BLOCK))
    check_found_and_never_read(caches, {block_shard(path, BLOCK): BLOCK for path in SHARDS})
    check_mended(caches, [BLOCK])


def _remove_record(file: Path) -> None:
    file.unlink()


def _leave_a_claim(file: Path) -> None:
    record = decode_record(file.read_bytes())
    assert isinstance(record, CommitRecord)
    file.write_bytes(encode_record(ClaimRecord(block=record.block, attempt=record.attempt)))


@pytest.mark.parametrize("damage", [_remove_record, _leave_a_claim])
def test_a_block_whose_commit_is_gone_counts_as_not_written(caches: Caches, damage: Damage) -> None:
    damage(caches.damaged / commit_key(TWIN))
    for full in (False, True):
        report = verify(open_object_store(caches.damaged), full=full)
        assert not report.sound
        assert report.committed == PLAN.blocks - 1
    with pytest.raises(CacheIncompleteError, match="3 of 4 blocks are written"):
        read_all(caches.damaged)
    check_mended(caches, [TWIN])
