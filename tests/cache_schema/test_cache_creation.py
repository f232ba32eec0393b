"""Creating a cache: all of it or nothing, and never over something else."""

import errno
from itertools import count
from pathlib import Path

import pytest

from mav.cache_schema.arrays import layouts
from mav.cache_schema.creation import require_free
from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import COMMITS, STATIC_RECORD, commit_key
from mav.cache_schema.root import ROOT
from mav.cache_schema.static_objects import static_objects
from mav.cache_schema.storage.base import Bytes, ETag, replace
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    begin,
    draft,
    finish,
    held,
    pair_columns,
    read_all,
    unembedding,
    write,
)
from tests.support.faults.full_disk import FullDisk

pytestmark = pytest.mark.usefixtures("unflushed_disk")


def test_creation_makes_missing_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "cache")
    read_all(tmp_path / "a" / "b" / "cache")


def test_an_empty_folder_becomes_a_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    assert not require_free(open_object_store(tmp_path / "cache"))
    write(tmp_path / "cache")
    assert require_free(open_object_store(tmp_path / "cache"))
    read_all(tmp_path / "cache")


def test_the_root_is_written_last(tmp_path: Path) -> None:
    written: list[str] = []

    class Recorded(LocalObjectStore):
        def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
            written.append(key)
            return super().write(key, data, expected)

    manifest, plan = draft(has_bias=True)
    with held(tmp_path / "cache") as (objects, run):
        begin(Recorded(tmp_path / "cache"), run, manifest, plan)
        there = {key for key in objects.sizes() if key != LOCK}
    written = [key for key in written if key != LOCK]
    assert written[-2:] == [STATIC_RECORD, ROOT]
    assert set(written) == there
    assert {f"{path}/zarr.json" for path in layouts(manifest)} < there


# Something else is there


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with (
        pytest.raises(CacheError, match="exists and is not a MAV cache"),
        held(tmp_path / "thesis") as (objects, run),
    ):
        begin(objects, run, *draft())
    assert sorted(tmp_path.rglob("*")) == [
        tmp_path / "thesis",
        tmp_path / "thesis" / "chapter.txt",
    ]


def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match="a file, so it is not a MAV cache"):
        require_free(open_object_store(tmp_path / "cache"))
    assert (tmp_path / "cache").read_text() == "a file"


@pytest.mark.parametrize("kept", [commit_key(0), f"{COMMITS}notes.txt"])
def test_blocks_without_their_root_are_refused_and_left_alone(tmp_path: Path, kept: str) -> None:
    write(tmp_path / "cache")
    root = (tmp_path / "cache" / ROOT).read_bytes()
    (tmp_path / "cache" / ROOT).unlink()
    if kept != commit_key(0):
        for record in (tmp_path / "cache" / "commits").glob("0*.json"):
            record.unlink()
        (tmp_path / "cache" / kept).write_text("")
    with held(tmp_path / "cache") as (objects, run):
        before = objects.sizes()
        with pytest.raises(CacheError) as caught:
            begin(objects, run, *draft())
        assert objects.sizes() == before
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'cache'}: it holds blocks of a cache, but zarr.json is")
    assert "Restore it from a copy, or remove the whole cache" in message
    if kept == commit_key(0):
        (tmp_path / "cache" / ROOT).write_bytes(root)
        read_all(tmp_path / "cache")


def test_a_cache_that_is_there_is_not_laid_out_again(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    with (
        held(tmp_path / "cache") as (objects, run),
        pytest.raises(CacheBusyError, match="another run has created a cache here"),
    ):
        begin(objects, run, *draft())
    read_all(tmp_path / "cache")


def test_creation_takes_the_lock(tmp_path: Path) -> None:
    with pytest.raises(CacheBusyError, match="its lock was removed"):
        begin(open_object_store(tmp_path / "cache"), "no run", *draft())
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_loses_its_lock_leaves_the_other_alone(tmp_path: Path) -> None:
    """Another run takes the lock over, and begins to lay out a cache of its own."""
    others = {"labels/zarr.json": b"begun by another", "unembedding/zarr.json": b"too"}

    class TakenOver(LocalObjectStore):
        def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
            if key == "unembedding/zarr.json":
                for name, theirs in others.items():
                    replace(open_object_store(self.location), name, theirs)
                (tmp_path / "cache" / LOCK).unlink()
            return super().write(key, data, expected)

    with held(tmp_path / "cache") as (objects, run):
        with pytest.raises(CacheBusyError, match="this run has lost the cache's lock"):
            begin(TakenOver(tmp_path / "cache"), run, *draft())
        assert {key: objects.read(key).tobytes() for key in objects.sizes()} == others


# Cut short


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_what_a_killed_creation_left_is_removed_by_the_next(tmp_path: Path, share: float) -> None:
    manifest, plan = draft(lengths=((5, 5),) * 7, has_bias=True)
    parts = list(static_objects(manifest, plan, pair_columns(plan), unembedding(manifest)))
    left = open_object_store(tmp_path / "cache")
    for key, data, _ in parts[: round(share * len(parts))]:
        left.write(key, data, None)
    left.write("labels/c.6", b"of a longer plan", None)
    (tmp_path / "cache" / "labels" / ".zarr.json.0123.partial").write_bytes(b"half")
    with pytest.raises(CacheError, match="not a MAV cache"):
        CacheReader(tmp_path / "cache")
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        finish(begin(objects, run, manifest, plan), manifest, plan)
    report = verify(open_object_store(tmp_path / "cache"), full=True)
    assert report.sound
    assert report.unknown == []
    assert not list(tmp_path.joinpath("cache").rglob("*.partial"))


def test_creation_is_all_or_nothing_wherever_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plan = draft(has_bias=True)
    for works in count():
        with monkeypatch.context() as patch:
            disk = FullDisk(patch, works)
            try:
                with held(tmp_path / "cache") as (objects, run):
                    begin(objects, run, manifest, plan)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                break
        assert list(tmp_path.iterdir()) == []
    # Every array has a description and the plan has its values: the loop was no empty one.
    assert disk.written >= len(layouts(manifest)) + 8
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]
    assert CacheWriter(open_object_store(tmp_path / "cache"), "any").manifest == manifest


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_creation_that_is_interrupted_leaves_nothing(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    class Stopped(LocalObjectStore):
        def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
            if key == ROOT:
                raise stop
            return super().write(key, data, expected)

    with pytest.raises(stop), held(tmp_path / "cache") as (_, run):
        begin(Stopped(tmp_path / "cache"), run, *draft())
    assert list(tmp_path.iterdir()) == []


def test_a_root_whose_answer_was_lost_is_not_left_alone(tmp_path: Path) -> None:
    """As in object storage, where nobody knows whether a request that timed out was carried out."""

    class AnswerLost(LocalObjectStore):
        def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
            version = super().write(key, data, expected)
            if key == ROOT:
                raise OSError(errno.EIO, "the server did not answer")
            return version

        def rollback(self, key: str, data: Bytes) -> None:
            """Nothing, as in object storage."""

    manifest, plan = draft()
    with held(tmp_path / "cache") as (_, run), pytest.raises(OSError, match="did not answer"):
        begin(AnswerLost(tmp_path / "cache"), run, manifest, plan)
    with held(tmp_path / "cache") as (objects, run):
        # Whether it is a cache by now or not: the next run makes it whole.
        there = require_free(objects)
        writer = CacheWriter(objects, run) if there else begin(objects, run, manifest, plan)
        finish(writer, manifest, plan)
    assert verify(objects, full=True).sound
