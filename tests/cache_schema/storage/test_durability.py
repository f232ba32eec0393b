"""What is written is on disk before anything relies on it, whatever fails."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema.storage.base import ConflictError
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.caches.stored_objects import content
from tests.support.caches.written_caches import leftovers

_WRITE = os.write


class Syncs:
    """Notes what `os.fsync` is called with, and what the object held at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.steps: list[tuple[str, bytes | None]] = []
        self.folders: set[int] = set()
        self._path = path
        monkeypatch.setattr("mav.cache_schema.storage.local.os.fsync", self)

    def __call__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        folder = stat.S_ISDIR(status.st_mode)
        if folder:
            self.folders.add(status.st_ino)
        held = self._path.read_bytes() if self._path.exists() else None
        self.steps.append(("folder" if folder else "file", held))


def test_a_file_is_on_disk_before_it_has_its_name_and_then_the_name_is(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place").mkdir()
    syncs = Syncs(monkeypatch, tmp_path / "place" / "x")
    version = objects.write("x", b"1", None)
    objects.write("x", b"2", version)
    assert syncs.steps == [("file", None), ("folder", b"1"), ("file", b"1"), ("folder", b"2")]
    assert syncs.folders == {(tmp_path / "place").stat().st_ino}


def test_new_folders_are_durable_in_their_parents(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch, tmp_path / "place" / "a" / "b" / "x")
    objects.write("a/b/x", b"1", None)
    place = tmp_path / "place"
    inodes = {folder.stat().st_ino for folder in (tmp_path, place, place / "a", place / "a" / "b")}
    assert syncs.folders == inodes
    # Before the object has its name: it is nowhere if a folder above it is lost.
    assert [held for _, held in syncs.steps] == [None] * 4 + [b"1"]


def test_a_removal_is_durable(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("a/x", b"1", None)
    syncs = Syncs(monkeypatch, tmp_path / "place" / "a" / "x")
    objects.delete("a/x")
    assert syncs.steps == [("folder", None)]
    objects.delete("a/x")
    objects.delete("nowhere/x")
    assert objects.sizes() == {}


def test_short_writes_are_gone_on_with(
    objects: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def short(descriptor: int, data: memoryview) -> int:
        calls.append(len(data))
        return _WRITE(descriptor, data[:3])

    monkeypatch.setattr("mav.cache_schema.storage.local.os.write", short)
    objects.write("x", b"0123456789", None)
    assert content(objects, "x") == b"0123456789"
    assert calls == [10, 7, 4, 1]


@pytest.mark.parametrize("call", ["write", "fsync", "link", "utime"])
def test_a_new_object_that_cannot_be_written_is_not_there(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    objects.write("other", b"1", None)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"mav.cache_schema.storage.local.os.{call}", fail)
        with pytest.raises(OSError, match="No space left") as caught:
            objects.write("x", b"2", None)
    assert caught.value.filename == str(tmp_path / "place" / "x")
    assert objects.sizes() == {"other": 1}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_an_object_that_cannot_be_replaced_stays_as_it_was(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    version = objects.write("x", b"1", None)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(f"mav.cache_schema.storage.local.os.{call}", fail)
        with pytest.raises(OSError, match="Input/output error"):
            objects.write("x", b"2", version)
    assert content(objects, "x") == b"1"
    assert objects.version("x") == version
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_will_do(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("mav.cache_schema.storage.local.os.link", fail)
    version = objects.write("a/x", b"1", None)
    assert version == objects.version("a/x")
    with pytest.raises(ConflictError):
        objects.write("a/x", b"2", None)
    objects.write("a/x", b"3", version)
    assert content(objects, "a/x") == b"3"
    assert leftovers(tmp_path) == []
