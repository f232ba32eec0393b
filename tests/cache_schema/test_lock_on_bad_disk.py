"""The lock of a cache in a store that fails: kept while it can be, and otherwise nobody's."""

import errno
import os
import stat
from pathlib import Path
from typing import Literal

import pytest

from mav.cache_schema.storage.base import Bytes, ConflictError, ETag
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.lock import LOCK, require_held
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.written_caches import lock_at_once
from tests.support.faults.full_disk import FullDisk
from tests.support.running.limits import wait_until

Call = Literal["before writing", "after writing", "conflict", "looking"]


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mav.cache_schema.storage.lock.BEAT_SECONDS", 0.05)


class Failing(LocalObjectStore):
    """Fails the next calls it is told to, in order."""

    fails: tuple[Call, ...] = ()

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        if self._next("before writing"):
            raise OSError(errno.EIO, "Input/output error")
        version = super().write(key, data, expected)
        if self._next("after writing"):
            raise OSError(errno.EIO, "Input/output error")
        if self._next("conflict"):
            # A request whose answer was lost is sent again, and finds what it wrote itself.
            raise ConflictError(key)
        return version

    def version(self, key: str) -> ETag | None:
        if self._next("looking"):
            raise OSError(errno.EIO, "Input/output error")
        return super().version(key)

    def _next(self, call: Call) -> bool:
        if self.fails[:1] != (call,):
            return False
        self.fails = self.fails[1:]
        return True


@pytest.mark.parametrize(
    "fails",
    [
        ("before writing",) * 3,
        ("after writing",) * 3,
        ("after writing", "before writing"),
        ("before writing", "looking"),
        ("after writing", "looking"),
        ("conflict",) * 3,
        ("conflict", "looking"),
    ],
)
def test_the_heart_outlives_a_store_that_fails(tmp_path: Path, fails: tuple[Call, ...]) -> None:
    objects = Failing(tmp_path / "cache")
    with lock_at_once(objects) as run:
        objects.fails = fails
        wait_until(lambda: objects.fails == ())
        # Looked at through eyes of its own.
        seen = open_object_store(tmp_path / "cache")
        version = seen.version(LOCK)
        wait_until(lambda: seen.version(LOCK) != version)
        require_held(seen, run)
    assert not (tmp_path / "cache").exists()


def test_a_lock_that_cannot_be_written_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, 0)
    with (
        pytest.raises(OSError, match="No space left"),
        lock_at_once(open_object_store(tmp_path / "a" / "cache")),
    ):
        pass
    assert not (tmp_path / "a" / "cache").exists()


def test_a_lock_whose_taking_failed_does_not_keep_its_own_process_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock has its name already when making that name durable fails."""
    (tmp_path / "cache").mkdir()

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("mav.cache_schema.storage.local.os.fsync", fail)
        with (
            pytest.raises(OSError, match="Input/output error"),
            lock_at_once(open_object_store(tmp_path / "cache")),
        ):
            pass
    with lock_at_once(objects := open_object_store(tmp_path / "cache")) as run:
        require_held(objects, run)
