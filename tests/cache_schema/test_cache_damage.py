"""A cache is complete or refused, whatever happens to its objects."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import STATIC_RECORD, commit_key
from mav.cache_schema.root import ROOT, encode_root
from mav.cache_schema.storage.base import replace
from tests.support.caches.written_caches import (
    LOSSES,
    SEVERAL_CHUNKS,
    begin,
    cut,
    draft,
    empty,
    go_on,
    held,
    read_all,
    stored_objects,
    write,
    write_one,
)

BLOCK_ARRAYS = ["hidden_states", "final_hidden_state", "labels"]
WRITTEN_ONCE = [
    "pairs/block_start",
    "pairs/response_start",
    "pairs/response_length",
    "pairs/pair_id",
    "pairs/prompt_id",
    "pairs/source",
    "pairs/source_row",
    "unembedding/weight",
    "unembedding/bias",
]


pytestmark = pytest.mark.usefixtures("unflushed_disk")


def _lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGES = [*LOSSES, _lengthen]


# Bits


@pytest.mark.parametrize("path", BLOCK_ARRAYS + WRITTEN_ONCE)
def test_any_flipped_bit_is_an_error_when_read(cache: Path, path: str) -> None:
    file = stored_objects(cache, path)[0]
    whole = file.read_bytes()
    for place in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 5, len(whole) - 1}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(CacheError, match=rf"{path}/c\.0[.0]*: damaged"):
            read_all(cache)
    file.write_bytes(whole)
    read_all(cache)


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc"])
def test_a_flipped_bit_in_any_chunk_is_an_error(tmp_path: Path, compression: str) -> None:
    write(tmp_path / "cache", compression=compression, **SEVERAL_CHUNKS)
    file = stored_objects(tmp_path / "cache", "hidden_states")[3]
    whole = file.read_bytes()
    for place in (10, len(whole) - 1000):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(CacheError, match=r"damaged .the checksum of chunk [01] does not match"):
            read_all(tmp_path / "cache")


@pytest.mark.parametrize("path", ["labels", "pairs/pair_id", "unembedding/bias"])
def test_damage_is_named_with_the_remedy(cache: Path, path: str) -> None:
    file = stored_objects(cache, path)[0]
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CacheError) as caught:
        read_all(cache)
    assert str(caught.value).startswith(f"{file}: damaged (")
    assert f"`mav verify --repair {cache}` removes what is damaged" in str(caught.value)


@pytest.mark.parametrize("name", ["token_scale", "channel_scale"])
@pytest.mark.parametrize("states", ["hidden_states", "final_hidden_state"])
def test_a_flipped_bit_of_a_scale_is_an_error(tmp_path: Path, states: str, name: str) -> None:
    write(tmp_path / "cache", storage="int8")
    file = stored_objects(tmp_path / "cache", f"{states}_{name}")[1]
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CacheError, match=rf"{states}_{name}/c\.1[.0]*: damaged"):
        read_all(tmp_path / "cache")


def test_a_block_without_damage_can_still_be_read(cache: Path) -> None:
    file = stored_objects(cache, "hidden_states")[1]
    file.write_bytes(file.read_bytes()[:-1] + b"\x55")
    reader = CacheReader(cache)
    reader.read_block(0)
    with pytest.raises(CacheError, match=r"hidden_states/c\.1\.0\.0: damaged .the checksum of its"):
        reader.read_block(1)


@pytest.mark.parametrize("path", BLOCK_ARRAYS)
def test_shards_of_equal_size_that_changed_places_are_found_when_read(
    cache: Path, path: str
) -> None:
    files = stored_objects(cache, path)
    assert files[0].stat().st_size == files[2].stat().st_size
    first = files[0].read_bytes()
    files[0].write_bytes(files[2].read_bytes())
    files[2].write_bytes(first)
    reader = CacheReader(cache)
    for block in (0, 2):
        with pytest.raises(CacheError, match="not those that were committed"):
            reader.read_block(block)


def test_a_shard_of_another_cache_is_found_when_read(cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", lengths=((7, 3), (3, 2)))
    ours, other = (
        stored_objects(cache, "labels")[0],
        stored_objects(tmp_path / "other", "labels")[1],
    )
    assert ours.stat().st_size == other.stat().st_size
    shutil.copy(other, ours)
    with pytest.raises(CacheError, match="not those that were committed"):
        read_all(cache)


# Whole objects


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", BLOCK_ARRAYS + WRITTEN_ONCE)
def test_lost_objects_are_found_when_opened(
    cache: Path, path: str, damage: Callable[[Path], None]
) -> None:
    lost = stored_objects(cache, path)[-1]
    damage(lost)
    with pytest.raises(CacheError) as caught:
        CacheReader(cache)
    assert not isinstance(caught.value, CacheIncompleteError)
    assert f"\n  - {lost.relative_to(cache)}: " in str(caught.value)
    assert "Run the same `mav extract` command again" in str(caught.value)


def test_an_object_that_is_lost_after_opening_is_named(cache: Path) -> None:
    reader = CacheReader(cache)
    stored_objects(cache, "labels")[1].unlink()
    with pytest.raises(CacheError, match=r"labels/c\.1: damaged"):
        reader.read_block(1)


def test_every_lost_shard_is_named_up_to_ten(tmp_path: Path) -> None:
    write(tmp_path / "cache", lengths=((5, 5),) * 13)
    for file in stored_objects(tmp_path / "cache", "labels"):
        file.unlink()
    with pytest.raises(CacheError) as caught:
        CacheReader(tmp_path / "cache")
    assert "13 damaged objects" in str(caught.value)
    assert str(caught.value).count("labels/c.") == 10
    assert "and 3 more" in str(caught.value)


@pytest.mark.parametrize("name", ["labels/zarr.json", "pairs/pair_id/zarr.json", "pairs/zarr.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_description_is_an_error(
    cache: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(cache / name)
    with pytest.raises(CacheError, match=name):
        CacheReader(cache)


# Records


@pytest.mark.parametrize("damage", [empty, cut, _lengthen])
def test_a_damaged_commit_record_is_named_with_the_remedy(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / commit_key(1))
    with pytest.raises(CacheError) as caught:
        CacheReader(cache)
    assert f"1 damaged objects:\n  - {commit_key(1)}: damaged (" in str(caught.value)
    assert "it computes damaged blocks again" in str(caught.value)


def test_any_flipped_bit_of_a_record_is_an_error(cache: Path) -> None:
    for record, subject in ((cache / commit_key(2), "00000002"), (cache / STATIC_RECORD, "layout")):
        whole = record.read_bytes()
        for place in range(0, len(whole), 7):
            record.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
            )
            with pytest.raises(CacheError, match=subject):
                CacheReader(cache)
        record.write_bytes(whole)
    read_all(cache)


def test_the_commit_record_of_another_block_proves_nothing(cache: Path) -> None:
    shutil.copy(cache / commit_key(0), cache / commit_key(2))
    with pytest.raises(CacheError, match="it is the record of something else"):
        CacheReader(cache)
    assert go_on(cache, has_bias=True) == [2]
    read_all(cache)


def test_a_commit_record_without_shards_proves_nothing(cache: Path) -> None:
    fields = json.loads((cache / commit_key(1)).read_text()) | {
        "objects": {},
        "seal": BLANK_CHECKSUM,
    }
    (cache / commit_key(1)).write_bytes(add_checksum(fields))
    with pytest.raises(CacheError, match=f"{commit_key(1)}: it names 0 objects, expected 3"):
        CacheReader(cache)
    assert go_on(cache, has_bias=True) == [1]
    read_all(cache)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_record_of_the_layout_is_named_with_the_remedy(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    damage(cache / STATIC_RECORD)
    with pytest.raises(CacheError) as caught:
        CacheReader(cache)
    assert str(caught.value).startswith(f"{cache / STATIC_RECORD}: damaged (")
    assert "remove the cache and extract again" in str(caught.value)
    with pytest.raises(CacheError, match="remove the cache and extract again"):
        go_on(cache, has_bias=True)


# Not complete


@pytest.mark.parametrize("blocks", range(5))
def test_an_incomplete_cache_is_refused_with_the_remedy(tmp_path: Path, blocks: int) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        for block in range(blocks):
            write_one(writer, manifest, plan, block)
    with pytest.raises(CacheIncompleteError) as caught:
        CacheReader(tmp_path / "cache")
    assert f"{blocks} of {plan.blocks} blocks are written" in str(caught.value)
    assert "Run the same `mav extract` command again" in str(caught.value)


def test_a_lost_commit_makes_a_complete_cache_incomplete(cache: Path) -> None:
    (cache / commit_key(1)).unlink()
    with pytest.raises(CacheIncompleteError, match="3 of 4 blocks"):
        CacheReader(cache)


def test_a_mark_of_completion_alone_is_not_believed(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        begin(objects, run, manifest, plan)
        replace(objects, ROOT, encode_root(dataclasses.replace(manifest, complete=True)))
    with pytest.raises(CacheIncompleteError, match="0 of 4 blocks"):
        CacheReader(tmp_path / "cache")
