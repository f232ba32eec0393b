"""What a cache was created with and has lost is written again, if it can be made as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.records import STATIC_RECORD, read_static_record
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    LOSSES,
    all_same_bits,
    draft,
    go_on,
    held,
    identity,
    pair_columns,
    read_all,
    unembedding,
)

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def restored(cache: Path) -> list[str]:
    manifest, plan = draft(has_bias=True)
    with held(cache) as (objects, run):
        writer = CacheWriter(objects, run)
        return writer.restore_static_objects(plan, pair_columns(plan), unembedding(manifest))


def contents(cache: Path) -> dict[str, bytes]:
    objects = open_object_store(cache)
    return {key: objects.read(key).tobytes() for key in objects.sizes()}


def test_nothing_is_written_where_nothing_is_lost(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    assert restored(cache) == []
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before


@pytest.mark.parametrize("damage", LOSSES)
def test_any_object_comes_back_with_the_bytes_it_had(
    cache: Path, original: Path, damage: Callable[[Path], None]
) -> None:
    known = read_static_record(open_object_store(cache), identity(cache)).objects
    assert {"labels/zarr.json", "pairs/zarr.json", "unembedding/bias/c.0"} <= set(known)
    for key in known:
        damage(cache / key)
        assert restored(cache) == [key]
        assert (cache / key).read_bytes() == (original / key).read_bytes()
    assert contents(cache) == contents(original)


def test_all_of_it_comes_back_at_once(cache: Path, original: Path) -> None:
    known = read_static_record(open_object_store(cache), identity(cache)).objects
    for folder in ("pairs", "unembedding"):
        shutil.rmtree(cache / folder)
    for description in cache.glob("*/zarr.json"):
        description.unlink()
    assert sorted(restored(cache)) == sorted(known)
    assert contents(cache) == contents(original)


@pytest.mark.parametrize("damage", LOSSES)
def test_without_it_blocks_are_not_gone_on_with(
    cache: Path, original: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / "pairs" / "pair_id" / "c.0")
    with held(cache) as (objects, run), pytest.raises(CacheError) as caught:
        CacheWriter(objects, run).missing()
    assert "pairs/pair_id/c.0: " in str(caught.value)
    assert "Run the same `mav extract` command again" in str(caught.value)
    assert go_on(cache, has_bias=True) == []
    assert all_same_bits(read_all(cache), read_all(original))
    assert verify(open_object_store(cache), full=True).sound


def test_what_would_not_be_as_it_was_is_not_written(cache: Path) -> None:
    manifest, plan = draft(has_bias=True)
    (cache / "pairs" / "pair_id" / "c.0").unlink()
    columns = pair_columns(plan)
    columns["pair_id"] = columns["pair_id"] ^ columns["pair_id"].dtype.type(1)
    with held(cache) as (objects, run), pytest.raises(CacheError) as caught:
        CacheWriter(objects, run).restore_static_objects(plan, columns, unembedding(manifest))
    assert (
        f"{cache}/pairs/pair_id/c.0: lost, and this program would write it with other bytes"
        in str(caught.value)
    )
    assert not (cache / "pairs" / "pair_id" / "c.0").exists()


@pytest.mark.parametrize("damage", LOSSES)
def test_without_the_record_of_the_layout_nothing_is_known(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / STATIC_RECORD)
    with pytest.raises(CacheError, match="remove the cache and extract again"):
        restored(cache)


def test_only_the_run_that_holds_the_lock_writes(cache: Path) -> None:
    manifest, plan = draft(has_bias=True)
    (cache / "labels" / "zarr.json").unlink()
    with held(cache) as (objects, run):
        writer = CacheWriter(objects, run)
        objects.delete(LOCK)
        with pytest.raises(CacheBusyError, match="its lock was removed"):
            writer.restore_static_objects(plan, pair_columns(plan), unembedding(manifest))
    assert not (cache / "labels" / "zarr.json").exists()
