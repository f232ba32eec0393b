"""Verifying finds every damage, and repairing marks just the blocks that have some."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mav.cache_schema.commits import Problem
from mav.cache_schema.errors import CacheError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import (
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    commit_key,
    encode_record,
    object_record,
    read_block_record,
)
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.storage.base import replace
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import VerifyReport, verify
from tests.support.caches.written_caches import (
    begin,
    block_rows,
    draft,
    held,
    identity,
    of_kind,
    stored_objects,
    write,
    write_one,
)

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def check(root: Path, *, full: bool = True) -> VerifyReport:
    return verify(open_object_store(root), full=full)


def change(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


# A cache without damage


@pytest.mark.parametrize("compression", ["none", "zstd", "blosc"])
@pytest.mark.parametrize(
    "options",
    [
        *({"encoding": encoding} for encoding in ("factored", "dense", "topk")),
        *({"storage": storage} for storage in ("int8", "fp8")),
    ],
    ids=repr,
)
def test_a_sound_cache(tmp_path: Path, compression: str, options: dict[str, str]) -> None:
    write(tmp_path / "cache", compression=compression, **options)
    for full in (False, True):
        report = check(tmp_path / "cache", full=full)
        assert report.sound
        assert (report.blocks, report.committed, report.complete) == (4, 4, True)
        assert (report.damaged_blocks, report.damaged_static, report.unknown) == ({}, [], [])


def test_what_is_read_is_counted(cache: Path) -> None:
    begun: list[int] = []
    steps: list[int] = []
    report = verify(open_object_store(cache), full=True, begin=begun.append, progress=steps.append)
    sizes = open_object_store(cache).sizes()
    checked = {k: v for k, v in sizes.items() if k != "zarr.json" and not k.startswith("commits/")}
    assert report.objects == len(steps) == len(checked)
    assert begun == [sum(steps)] == [report.bytes] == [sum(checked.values())]
    fast = verify(open_object_store(cache), full=False, begin=begun.append, progress=steps.append)
    assert (fast.objects, fast.bytes, fast.full) == (report.objects, 0, False)
    assert (len(begun), len(steps)) == (1, len(checked))


def test_the_report_is_plain_values(cache: Path) -> None:
    stored_objects(cache, "labels")[2].unlink()
    found = json.loads(json.dumps(check(cache).to_json()))
    assert found["sound"] is False
    assert found["location"] == str(cache)
    assert found["damaged_blocks"] == {"2": ["labels/c.2: missing, expected 64 bytes"]}


def test_a_cache_that_is_being_written_is_not_damaged(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        write_one(writer, manifest, plan, 1)
        objects.write(commit_key(2), encode_record(ClaimRecord(block=2, attempt="x")), None)
        objects.write("labels/c.2", b"half of it", None)
        report = verify(objects, full=True)
        assert LOCK in objects.sizes()
    assert (report.committed, report.complete, report.sound) == (1, False, False)
    assert (report.damaged_blocks, report.damaged_static, report.unknown) == ({}, [], [])


# Damage that a look at sizes finds


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("path", sorted(of_kind(draft()[0], "block")))
def test_missing_cut_and_emptied_shards(cache: Path, path: str, full: bool) -> None:
    files = stored_objects(cache, path)
    keys = [str(file.relative_to(cache)) for file in files]
    size = files[0].stat().st_size
    files[0].unlink()
    change(files[1], lambda data: data[:-1])
    change(files[2], lambda _: b"")
    report = check(cache, full=full)
    assert not report.sound
    assert report.to_json()["damaged_blocks"] == {
        0: [f"{keys[0]}: missing, expected {size} bytes"],
        1: [f"{keys[1]}: {size - 1} bytes, expected {size}"],
        2: [f"{keys[2]}: 0 bytes, expected {size}"],
    }


@pytest.mark.parametrize("full", [False, True])
def test_damage_to_the_layout_by_size(cache: Path, full: bool) -> None:
    (cache / "pairs" / "pair_id" / "c.0").unlink()
    change(cache / "labels" / "zarr.json", lambda data: data + b" ")
    report = check(cache, full=full)
    assert not report.sound
    assert report.damaged_blocks == {}
    found = sorted(problem.key for problem in report.damaged_static)
    assert found == ["labels/zarr.json", "pairs/pair_id/c.0"]


@pytest.mark.parametrize("full", [False, True])
def test_damaged_records(cache: Path, full: bool) -> None:
    change(cache / commit_key(0), flipped)
    shutil.copy(cache / commit_key(2), cache / commit_key(1))
    report = check(cache, full=full)
    assert sorted(report.damaged_blocks) == [0, 1]
    assert report.committed == 2
    (first,), (second,) = report.damaged_blocks.values()
    assert str(first).startswith(f"{commit_key(0)}: damaged (")
    assert second == Problem(commit_key(1), "damaged (it is the record of something else)", 1)


def test_a_record_that_a_complete_cache_has_lost(cache: Path) -> None:
    (cache / commit_key(3)).unlink()
    report = check(cache)
    assert report.damaged_blocks == {3: [Problem(commit_key(3), "missing, or not a commit", 3)]}
    assert (report.damaged_static, report.unknown) == ([], [])
    assert (report.committed, report.complete, report.sound) == (3, True, False)


def test_unknown_objects_are_named_and_no_damage(cache: Path) -> None:
    strange = ["commits/00000004.json", "labels/c.4", "labels/notes.txt", "thesis/chapter.txt"]
    (cache / "thesis").mkdir()
    for key in strange:
        (cache / key).write_text("of something else")
    (cache / "labels" / ".c.1.77.partial").write_text("of a killed writer")
    report = check(cache, full=False)
    assert report.unknown == strange
    assert report.sound


# Damage that only reading finds


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "zeroed": lambda data: bytes(len(data)),
    "zeroed in part": lambda data: bytes(8) + data[8:],
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("path", sorted(of_kind(draft()[0], "block")))
def test_changed_bytes_of_a_shard(cache: Path, path: str, kind: str) -> None:
    file = stored_objects(cache, path)[2]
    change(file, DAMAGES[kind])
    assert check(cache, full=False).sound
    report = check(cache)
    assert not report.sound
    assert list(report.damaged_blocks) == [2]
    (problem,) = report.problems
    assert str(problem) == (
        f"{file.relative_to(cache)}: its SHA-256 is not the one recorded when it was written"
    )


@pytest.mark.parametrize(
    "name", ["pairs/block_start/c.0", "unembedding/bias/c.0", "labels/zarr.json"]
)
def test_changed_bytes_of_the_layout(cache: Path, name: str) -> None:
    change(cache / name, flipped)
    assert check(cache, full=False).sound
    report = check(cache)
    assert not report.sound
    assert report.damaged_blocks == {}
    assert report.to_json()["damaged_static"] == [
        f"{name}: its SHA-256 is not the one recorded when it was written"
    ]


def test_shards_that_changed_places(cache: Path) -> None:
    first, _, third, _ = stored_objects(cache, "hidden_states")
    whole = first.read_bytes()
    first.write_bytes(third.read_bytes())
    third.write_bytes(whole)
    assert check(cache, full=False).sound
    assert sorted(check(cache).damaged_blocks) == [0, 2]


def test_a_shard_that_another_attempt_left(cache: Path) -> None:
    """Whole, of the right size and for the right block, but not what the record was made for."""
    manifest, _ = draft()
    layout = of_kind(manifest, "block")["labels"]
    shard = encode_shard(layout, np.ones((10,), "int32"))
    file = stored_objects(cache, "labels")[0]
    assert file.stat().st_size == len(shard.data)
    file.write_bytes(shard.data.tobytes())
    assert check(cache, full=False).sound
    assert list(check(cache).damaged_blocks) == [0]


def rewrite_record(root: Path, block: int, **fields: Any) -> None:
    objects = open_object_store(root)
    record = read_block_record(objects, block, identity(root))
    assert isinstance(record, CommitRecord)
    replace(objects, commit_key(block), encode_record(dataclasses.replace(record, **fields)))


def test_values_that_the_record_does_not_have_as_its_content(cache: Path) -> None:
    """A shard and its own digests changed together: the digest of the block's values tells."""
    manifest, plan = draft()
    layout = of_kind(manifest, "block")["labels"]
    shard = encode_shard(layout, block_rows(manifest, plan, 0)["labels"] + 1)
    (cache / "labels" / "c.0").write_bytes(shard.data.tobytes())
    record = read_block_record(open_object_store(cache), 0, identity(cache))
    assert isinstance(record, CommitRecord)
    item = object_record(shard.data.data, shard)
    rewrite_record(cache, 0, objects=record.objects | {"labels/c.0": item})
    CacheReader(cache).read_block(0)
    assert check(cache).to_json()["damaged_blocks"] == {
        0: ["commits/00000000.json: the block's values are not those that were committed"]
    }


@pytest.mark.parametrize("fields", [{"pairs": 3}, {"tokens": 9}])
def test_a_record_that_disagrees_with_the_plan(cache: Path, fields: dict[str, int]) -> None:
    rewrite_record(cache, 0, **fields)
    ((problem,),) = check(cache).damaged_blocks.values()
    assert problem.key == commit_key(0)
    assert problem.reason.endswith("but the plan has 2 of 10")


def test_every_damage_is_told_at_once(cache: Path) -> None:
    labels, states = stored_objects(cache, "labels"), stored_objects(cache, "hidden_states")
    labels[0].unlink()
    change(labels[1], flipped)
    change(states[1], flipped)
    change(cache / commit_key(3), lambda _: b"")
    change(cache / "pairs" / "zarr.json", flipped)
    report = check(cache)
    problems = {block: len(found) for block, found in report.damaged_blocks.items()}
    assert problems == {0: 1, 1: 2, 3: 1}
    assert len(report.damaged_static) == 1


# What nothing can be said of


@pytest.mark.parametrize("name", ["zarr.json", STATIC_RECORD])
def test_without_root_or_layout_nothing_can_be_said(cache: Path, name: str) -> None:
    change(cache / name, flipped)
    with pytest.raises(CacheError, match=name):
        check(cache)


def test_no_cache_at_all(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no such cache"):
        check(tmp_path / "nowhere")
