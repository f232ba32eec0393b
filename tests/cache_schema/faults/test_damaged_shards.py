"""Objects that are lost, cut, emptied, zeroed, or swapped for others that are whole in themselves.

File systems do this after a crash, copying tools that are interrupted, and people who put a file
back from the wrong copy. Damage that shows in a size must be found when the cache is opened and by
a fast verification; all of it by a full one, naming object and block. None may give a wrong value
when it is read, and a repair with another run of the extraction must mend what can be mended.
"""

import shutil
from pathlib import Path

import pytest

from tests.support.faults.damage import (
    ANY,
    BLOCK,
    CHANGES_SIZE,
    LAYOUTS,
    PLAN,
    SHARDS,
    TWIN,
    Caches,
    Damage,
    block_shard,
    check_found_and_never_read,
    check_mended,
    check_sized_damage_is_seen_on_opening,
    check_wrong_encoding_is_found,
    leave_an_older_attempt,
    swap,
    zero,
)

pytestmark = pytest.mark.usefixtures("unflushed_disk")


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


def test_a_shard_that_was_encoded_wrongly_is_found(tmp_path: Path) -> None:
    check_wrong_encoding_is_found(tmp_path / "cache")
