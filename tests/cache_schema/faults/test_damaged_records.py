"""Damage to what is not in a shard of a block: plan, unembedding, root, records."""

import shutil
from pathlib import Path

import pytest

from mav.cache_schema.arrays import shard_key
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.records import (
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    commit_key,
    decode_record,
    encode_record,
)
from mav.cache_schema.root import ROOT
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    all_same_bits,
    held,
    read_all,
    write,
)
from tests.support.faults.damage import (
    ANY,
    BLOCK,
    CHANGES_SIZE,
    FIXED,
    LAYOUTS,
    OPTIONS,
    PLAN,
    SHARDS,
    TWIN,
    Caches,
    Damage,
    block_shard,
    check_found_and_never_read,
    check_laid_out_again,
    check_mended,
    check_sized_damage_is_seen_on_opening,
    delete,
    leave_an_older_attempt,
    make_whole,
    swap,
)

pytestmark = pytest.mark.usefixtures("unflushed_disk")

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
