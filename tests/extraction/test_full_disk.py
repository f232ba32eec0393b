"""A disk that fills up while a cache is written: nothing half is committed, and it goes on."""

import errno
import os
from pathlib import Path

import pytest

from mav.cache_schema.commits import read_commits
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import commit_key
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.support.caches.written_caches import (
    all_same_bits,
    begin,
    draft,
    finish,
    held,
    leftovers,
    of_kind,
    read_all,
    write_one,
)
from tests.support.faults.full_disk import FullDisk
from tests.support.models.tiny import make_cache

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def test_the_block_that_did_not_fit_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft()
    writes = len(of_kind(manifest, "block")) + 2  # its claim, its shards, its commit
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        write_one(writer, manifest, plan, 0)
        for works in range(writes):
            with monkeypatch.context() as patch:
                FullDisk(patch, works)
                with pytest.raises(OSError, match="No space left"):
                    write_one(writer, manifest, plan, 1)
            assert sorted(read_commits(objects, manifest, objects.sizes()).records) == [0]
            assert leftovers(tmp_path) == []
        with monkeypatch.context() as patch:
            FullDisk(patch, writes)
            write_one(writer, manifest, plan, 1)
        assert writer.missing() == [2, 3]
        finish(writer, manifest, plan)
    read_all(tmp_path / "cache")


def test_a_commit_that_may_not_outlive_a_power_failure_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has its name, but its folder cannot be forced to the disk."""
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        commits = (tmp_path / "cache" / "commits").stat().st_ino
        synced = []

        def sync(descriptor: int) -> None:
            if os.fstat(descriptor).st_ino == commits:
                synced.append(descriptor)
                if len(synced) == 2:  # after that of the claim
                    raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("mav.cache_schema.storage.local.os.fsync", sync)
            with pytest.raises(OSError, match="Input/output error"):
                write_one(writer, manifest, plan, 2)
        assert len(synced) == 2
        assert not (tmp_path / "cache" / commit_key(2)).exists()
        assert writer.missing() == [0, 1, 2, 3]
        finish(writer, manifest, plan)
    assert verify(objects, full=True).sound


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A cache of a tiny Llama, and the number of files that writing it took."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, None)
        root = make_cache(tmp_path_factory.mktemp("whole"), pairs=12)
    return root, disk.written


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_extraction_on_a_full_disk_commits_nothing_half_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Path, int],
    share: float,
) -> None:
    reference, writes = uninterrupted
    root = tmp_path / "cut" / "cache"
    with monkeypatch.context() as patch:
        FullDisk(patch, round(share * (writes - 1)))
        with pytest.raises(OSError, match="No space left") as caught:
            make_cache(tmp_path / "cut", pairs=12)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(tmp_path / "cut") == []
    if root.exists():
        with pytest.raises(CacheIncompleteError):
            CacheReader(root)
        report = verify(open_object_store(root), full=True)
        assert (report.damaged_blocks, report.damaged_static, report.unknown) == ({}, [], [])
    else:
        with pytest.raises(CacheError, match="no such cache"):
            CacheReader(root)
    make_cache(tmp_path / "cut", pairs=12)
    assert leftovers(tmp_path / "cut") == []
    assert all_same_bits(read_all(root), read_all(reference))
