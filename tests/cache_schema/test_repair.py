"""Repairing removes just what is damaged, and the next extraction makes the cache whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mav.cache_schema.errors import CacheBusyError, CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import commit_key
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import repair, verify
from tests.support.caches.written_caches import (
    all_same_bits,
    go_on,
    held,
    read_all,
    stored_objects,
)
from tests.support.running.logs import logged_messages

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def change(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 4]) + data[1:]


def repaired(root: Path, *, full: bool = True) -> list[str]:
    objects = open_object_store(root)
    with logged_messages() as logged:
        repair(objects, verify(objects, full=full))
    return logged


def commits(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.glob("commits/0*.json"))


def damage_shards(cache: Path) -> None:
    change(stored_objects(cache, "labels")[1], flipped)
    stored_objects(cache, "hidden_states")[3].unlink()


def damage_records(cache: Path) -> None:
    change(cache / commit_key(1), flipped)
    shutil.copy(cache / commit_key(2), cache / commit_key(3))


def swap_shards(cache: Path) -> None:
    one, three = (stored_objects(cache, "labels")[block] for block in (1, 3))
    first = one.read_bytes()
    one.write_bytes(three.read_bytes())
    three.write_bytes(first)


@pytest.mark.parametrize("damage", [damage_shards, damage_records, swap_shards])
def test_damaged_blocks_are_marked_and_then_written_again(
    cache: Path, original: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache)
    (said,) = repaired(cache)
    assert said.startswith(f"{cache}: 2 damaged blocks and 0 other objects are marked; run the")
    assert commits(cache) == [commit_key(0), commit_key(2)]
    with pytest.raises(CacheIncompleteError, match="2 of 4 blocks"):
        CacheReader(cache)
    assert not read_manifest(open_object_store(cache)).complete
    assert go_on(cache) == [1, 3]
    assert verify(open_object_store(cache), full=True).sound
    assert all_same_bits(read_all(cache), read_all(original))


def test_what_the_fast_look_found_is_repaired_too(cache: Path) -> None:
    stored_objects(cache, "labels")[2].write_bytes(b"")
    repaired(cache, full=False)
    assert go_on(cache) == [2]
    assert verify(open_object_store(cache), full=True).sound


def test_a_sound_cache_stays_as_it_is(cache: Path) -> None:
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    repaired(cache)
    after = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    after.pop(cache / ".mutex", None)
    before.pop(cache / ".mutex", None)
    assert after == before


def test_a_complete_cache_that_lost_a_record_is_marked_incomplete(cache: Path) -> None:
    (cache / commit_key(0)).unlink()
    repaired(cache)
    assert not read_manifest(open_object_store(cache)).complete
    assert go_on(cache) == [0]
    assert verify(open_object_store(cache), full=True).sound


def test_a_cache_that_another_run_writes_to_is_left_alone(cache: Path) -> None:
    damage_shards(cache)
    objects = open_object_store(cache)
    report = verify(objects, full=True)
    with held(cache), pytest.raises(CacheBusyError, match="another run is writing to this cache"):
        repair(objects, report)
    assert len(commits(cache)) == 4
    assert read_manifest(objects).complete


@pytest.mark.parametrize(
    "name", ["pairs/pair_id/c.0", "unembedding/weight/c.0.0", "labels/zarr.json"]
)
@pytest.mark.parametrize("blocks_too", [False, True])
def test_what_was_written_once_is_removed_and_then_written_again(
    cache: Path, original: Path, name: str, blocks_too: bool
) -> None:
    if blocks_too:
        damage_shards(cache)
    change(cache / name, flipped)
    (said,) = repaired(cache)
    assert f"{2 if blocks_too else 0} damaged blocks and 1 other objects are marked" in said
    assert not (cache / name).exists()
    with pytest.raises(CacheError):
        CacheReader(cache)
    assert go_on(cache) == ([1, 3] if blocks_too else [])
    assert verify(open_object_store(cache), full=True).sound
    assert all_same_bits(read_all(cache), read_all(original))


def test_the_lock_is_given_back(cache: Path) -> None:
    damage_shards(cache)
    repaired(cache)
    with held(cache):
        pass


def test_repairing_twice_is_repairing_once(cache: Path) -> None:
    damage_shards(cache)
    repaired(cache)
    before = commits(cache)
    (said,) = repaired(cache)
    assert ": 0 damaged blocks" in said
    assert commits(cache) == before
    assert go_on(cache) == [1, 3]
