"""A block that several writers try is committed by one of them, whole."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mav.cache_schema.errors import CacheBusyError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import ClaimRecord, commit_key, encode_record
from mav.cache_schema.storage.base import Bytes, ETag
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    Rows,
    all_same_bits,
    begin,
    block_rows,
    draft,
    finish,
    go_on,
    held,
    write,
    write_one,
)

BLOCK = 1


pytestmark = pytest.mark.usefixtures("unflushed_disk")


class Interrupted(LocalObjectStore):
    """A place where something happens once, just after a version is read or before a write."""

    at = ("", "")
    happens: Callable[[], None] = staticmethod(lambda: None)

    def version(self, key: str) -> ETag | None:
        found = super().version(key)
        self._reach("version", key)
        return found

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        self._reach("write" if expected is None else "replace", key)
        return super().write(key, data, expected)

    def _reach(self, call: str, key: str) -> None:
        if (call, key) == self.at:
            self.at = ("", "")
            self.happens()


def other_rows() -> Rows:
    """Rows of the same shapes, so that their shards have the same sizes."""
    return {path: np.ones_like(rows) for path, rows in block_rows(*draft(), BLOCK).items()}


@pytest.mark.parametrize("commits", [False, True], ids=["claims", "commits"])
@pytest.mark.parametrize(
    "at",
    [
        ("write", commit_key(BLOCK)),
        ("version", "hidden_states/c.1.0.0"),
        ("write", "hidden_states/c.1.0.0"),
        ("version", "labels/c.1"),
        ("write", "labels/c.1"),
        ("replace", commit_key(BLOCK)),
    ],
)
def test_a_block_that_another_takes_over_is_the_others(
    tmp_path: Path, at: tuple[str, str], commits: bool
) -> None:
    manifest, plan = draft()
    objects = Interrupted(tmp_path / "cache")
    elsewhere = open_object_store(tmp_path / "cache")
    with held(tmp_path / "cache") as (_, run):
        slow = begin(objects, run, manifest, plan)

        def taken_over() -> None:
            if commits:
                write_one(CacheWriter(elsewhere, run), manifest, plan, BLOCK)
            else:
                claim = encode_record(ClaimRecord(block=BLOCK, attempt="another"))
                seen = elsewhere.version(commit_key(BLOCK))
                elsewhere.write(commit_key(BLOCK), claim, seen)

        objects.at, objects.happens = at, taken_over
        # Whoever finds it only claimed, or committed, before it claims itself, has nothing to mind.
        before_claim = at == ("write", commit_key(BLOCK))
        if before_claim or (commits and at[0] == "replace"):
            slow.write_block(BLOCK, 1, other_rows())
        else:
            with pytest.raises(CacheBusyError, match="another run has taken over block 1"):
                slow.write_block(BLOCK, 1, other_rows())
        assert objects.at == ("", "")
        finish(CacheWriter(elsewhere, run), manifest, plan)
    assert verify(elsewhere, full=True).sound
    found = CacheReader(tmp_path / "cache").read_block(BLOCK).rows
    kept = other_rows() if before_claim and not commits else block_rows(manifest, plan, BLOCK)
    assert all_same_bits(found, kept)


@pytest.mark.parametrize("round_", range(5))
def test_of_many_writers_of_a_block_one_commits_it(tmp_path: Path, round_: int) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        begin(objects, run, manifest, plan)

        def attempt(value: int) -> int | None:
            rows = {k: np.full_like(v, value) for k, v in block_rows(manifest, plan, 0).items()}
            try:
                CacheWriter(open_object_store(objects.location), run).write_block(0, 2, rows)
            except CacheBusyError:
                return None
            return value

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(attempt, range(8)))
        assert done.count(None) < 8
        finish(CacheWriter(objects, run), manifest, plan)
    assert verify(objects, full=True).sound
    rows = CacheReader(tmp_path / "cache").read_block(0).rows
    assert len({float(value) for values in rows.values() for value in np.unique(values)}) == 1


def test_a_committed_block_is_not_written_again(tmp_path: Path) -> None:
    write(tmp_path / "cache")
    before = CacheReader(tmp_path / "cache").read_block(BLOCK).rows
    with held(tmp_path / "cache") as (objects, run):
        CacheWriter(objects, run).write_block(BLOCK, 1, other_rows())
    assert all_same_bits(CacheReader(tmp_path / "cache").read_block(BLOCK).rows, before)
    assert verify(objects, full=True).sound


def test_a_run_that_lost_the_lock_commits_nothing_more(tmp_path: Path) -> None:
    manifest, plan = draft()
    with held(tmp_path / "cache") as (objects, run):
        writer = begin(objects, run, manifest, plan)
        write_one(writer, manifest, plan, 0)
        objects.delete(LOCK)
        for step in (writer.missing, writer.complete, lambda: write_one(writer, manifest, plan, 1)):
            with pytest.raises(CacheBusyError, match="this run has lost the cache's lock"):
                step()
    assert go_on(tmp_path / "cache") == [1, 2, 3]


def test_a_commit_whose_answer_was_lost_counts(tmp_path: Path) -> None:
    manifest, plan = draft()

    class AnswersLost(LocalObjectStore):
        def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
            version = super().write(key, data, expected)
            # As a request that is sent again after its answer was lost: it finds itself.
            return (
                super().write(key, data, expected) if key == commit_key(0) and expected else version
            )

    with held(tmp_path / "cache") as (objects, run):
        begin(objects, run, manifest, plan)
        writer = CacheWriter(AnswersLost(tmp_path / "cache"), run)
        write_one(writer, manifest, plan, 0)
        assert writer.missing() == [1, 2, 3]
