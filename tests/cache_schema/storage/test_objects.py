"""A folder of objects: conditional, whole and durable writes, and nothing left lying about."""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mav.cache_schema.errors import CacheError
from mav.cache_schema.storage.addresses import is_remote
from mav.cache_schema.storage.base import ConflictError, ETag, replace
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.open import open_object_store
from tests.support.written_caches import leftovers

_WRITE = os.write
_READV = os.readv
_OPEN = os.open
_CLOSE = os.close


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "place")


def content(objects: LocalObjectStore, key: str) -> bytes:
    return objects.read(key).tobytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Where they are


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("caches/llama", False),
        ("/caches/llama", False),
        ("C:\\caches", False),
        ("file:///caches/llama", False),
        ("FILE:///caches/llama", False),
        ("s3://bucket/llama", True),
        ("S3://bucket/llama", True),
        ("gs://bucket", True),
        ("abfss+x://y", True),
        ("s3:/bucket", False),
        ("a/s3://b", False),
    ],
)
def test_urls_are_told_from_folders(location: str, remote: bool) -> None:
    assert is_remote(location) is remote


@pytest.mark.parametrize("form", [str, Path, "file://{}".format])
def test_a_folder_is_opened(tmp_path: Path, form: Callable[[Path], Any]) -> None:
    objects = open_object_store(form(tmp_path))
    assert objects.location == str(tmp_path)
    objects.write("a/b", b"x", None)
    assert (tmp_path / "a" / "b").read_bytes() == b"x"


# Writing


@pytest.mark.parametrize("data", [b"", b"content", bytes(range(256)) * 99])
def test_what_is_written_is_read(objects: LocalObjectStore, data: bytes) -> None:
    version = objects.write("a/b/c.0", data, None)
    assert content(objects, "a/b/c.0") == data
    assert objects.read("a/b/c.0").dtype == np.uint8
    assert version == objects.version("a/b/c.0")
    assert version.size == len(data)


def test_a_buffer_of_any_type_is_written_as_its_bytes(objects: LocalObjectStore) -> None:
    values = np.arange(6, dtype="<i4").reshape(2, 3)
    assert objects.write("x", values.data, None).size == 24
    assert content(objects, "x") == values.tobytes()


def test_what_is_not_there(objects: LocalObjectStore, tmp_path: Path) -> None:
    for key in ("x", "a/x"):
        assert objects.version(key) is None
        with pytest.raises(FileNotFoundError):
            objects.read(key)
    (tmp_path / "place").write_text("a file in the way")
    assert objects.version("x") is None
    with pytest.raises(NotADirectoryError):
        objects.read("x")


def test_a_new_object_is_refused_where_one_is(objects: LocalObjectStore) -> None:
    objects.write("a/x", b"first", None)
    with pytest.raises(ConflictError):
        objects.write("a/x", b"second", None)
    assert content(objects, "a/x") == b"first"
    assert leftovers(Path(objects.location)) == []


def test_an_object_is_replaced_in_the_version_expected_only(objects: LocalObjectStore) -> None:
    first = objects.write("x", b"1", None)
    second = objects.write("x", b"2", first)
    assert content(objects, "x") == b"2"
    assert second == objects.version("x")
    for expected in (first, ETag(tag="", generation=None, size=1)):
        with pytest.raises(ConflictError):
            objects.write("x", b"3", expected)
    objects.delete("x")
    with pytest.raises(ConflictError):
        objects.write("x", b"3", second)
    assert objects.sizes() == {}
    assert leftovers(Path(objects.location)) == []


def test_equal_bytes_are_another_version(objects: LocalObjectStore) -> None:
    versions = [objects.write("x", b"same", None)]
    for _ in range(20):
        versions.append(objects.write("x", b"same", versions[-1]))
    assert len({version.tag for version in versions}) == len(versions)


def test_replace_takes_any_version_and_none(objects: LocalObjectStore) -> None:
    for data in (b"1", b"2"):
        assert replace(objects, "x", data) == objects.version("x")
        assert content(objects, "x") == data


# Reading in parts


def rooms(*sizes: int) -> list[NDArray[np.uint8]]:
    """Buffers that hold something else yet."""
    return [np.full(size, 7, np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [(10,), (1, 9), (4, 0, 6), (0, 10, 0), (1,) * 10])
def test_an_object_is_read_in_parts(objects: LocalObjectStore, sizes: tuple[int, ...]) -> None:
    objects.write("a/x", b"0123456789", None)
    parts = rooms(*sizes)
    assert list(objects.read_parts("a/x", iter(parts))) == list(range(len(sizes)))
    assert b"".join(part.tobytes() for part in parts) == b"0123456789"


def test_an_empty_object_is_read_in_no_parts(objects: LocalObjectStore) -> None:
    objects.write("x", b"", None)
    assert list(objects.read_parts("x", [])) == []
    assert list(objects.read_parts("x", rooms(0))) == [0]


def test_parts_may_lie_in_a_larger_array(objects: LocalObjectStore) -> None:
    objects.write("x", b"0123456789", None)
    (whole,) = rooms(12)
    assert list(objects.read_parts("x", [whole[7:11], whole[:6]])) == [0, 1]
    assert whole.tobytes() == b"456789\x070123\x07"


def test_parts_are_told_of_as_soon_as_they_are_full(objects: LocalObjectStore) -> None:
    objects.write("x", b"012345", None)
    parts = rooms(3, 3)
    reading = objects.read_parts("x", parts)
    assert next(reading) == 0
    assert [part.tobytes() for part in parts] == [b"012", b"\7\7\7"]
    assert next(reading) == 1
    assert parts[1].tobytes() == b"345"


@pytest.mark.parametrize(
    ("sizes", "full", "message"),
    [
        ((), 0, "it is longer than expected"),
        ((3, 3), 2, "it is longer than expected"),
        ((3, 5), 1, "it is shorter than expected"),
        ((8,), 0, "it is shorter than expected"),
        ((7, 1), 1, "it is shorter than expected"),
    ],
)
def test_an_object_of_another_size_than_its_parts_is_refused(
    objects: LocalObjectStore, sizes: tuple[int, ...], full: int, message: str
) -> None:
    objects.write("x", b"content", None)
    found = []
    with pytest.raises(ValueError, match=message):
        for number in objects.read_parts("x", rooms(*sizes)):
            found.append(number)  # noqa: PERF402 (what came before the error is wanted)
    assert found == list(range(full))


def test_parts_of_what_is_not_there(objects: LocalObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        list(objects.read_parts("a/x", rooms(1)))
    assert str(caught.value.filename) == str(tmp_path / "place" / "a" / "x")


def test_short_reads_are_gone_on_with(
    objects: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("x", b"0123456789", None)
    calls = []

    def short(descriptor: int, buffers: list[memoryview]) -> int:
        calls.append(len(buffers[0]))
        return _READV(descriptor, [buffers[0][:3]])

    monkeypatch.setattr("mav.cache_schema.storage.local.os.readv", short)
    parts = rooms(8, 2)
    assert list(objects.read_parts("x", parts)) == [0, 1]
    assert b"".join(part.tobytes() for part in parts) == b"0123456789"
    assert calls == [8, 5, 2, 2]


def test_a_failing_read_names_its_file(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("x", b"0123456789", None)

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mav.cache_schema.storage.local.os.readv", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(objects.read_parts("x", rooms(10)))
    assert str(caught.value.filename) == str(tmp_path / "place" / "x")


@pytest.mark.parametrize("sizes", [(5, 5), (5, 4), (5, 6)])
def test_no_descriptor_stays_open(
    objects: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    objects.write("x", b"0123456789", None)
    opened, closed = [], []

    def note_open(*arguments: Any) -> int:
        opened.append(_OPEN(*arguments))
        return opened[-1]

    def note_close(descriptor: int) -> None:
        closed.append(descriptor)
        _CLOSE(descriptor)

    monkeypatch.setattr("mav.cache_schema.storage.local.os.open", note_open)
    monkeypatch.setattr("mav.cache_schema.storage.local.os.close", note_close)
    with contextlib.suppress(ValueError):
        list(objects.read_parts("x", rooms(*sizes)))
    assert len(opened) == 1
    reading = objects.read_parts("x", rooms(*sizes))
    next(reading)
    del reading  # left before its end
    assert len(opened) == 2
    assert opened == closed


# Durability


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


# Withdrawing, listing and cleaning


def test_only_the_bytes_that_were_written_are_withdrawn(objects: LocalObjectStore) -> None:
    objects.write("x", b"mine", None)
    objects.rollback("x", b"another's")
    assert content(objects, "x") == b"mine"
    objects.rollback("x", b"mine")
    assert objects.sizes() == {}


def test_withdrawing_never_raises(
    objects: LocalObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.rollback("x", b"there is not even a folder")
    objects.write("x", b"mine", None)
    objects.rollback("y", b"there is no such object")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mav.cache_schema.storage.local.os.unlink", fail)
    objects.rollback("x", b"mine")
    assert content(objects, "x") == b"mine"


def test_sizes_are_of_objects_only(objects: LocalObjectStore, tmp_path: Path) -> None:
    assert objects.sizes() == {}
    objects.write("x", b"1", None)
    objects.write("a/c.0", b"", None)
    objects.write("a/b/c.1.0", b"123", None)
    place = tmp_path / "place"
    (place / "empty").mkdir()
    (place / ".hidden").mkdir()
    for name in (".DS_Store", "a/.c.0.77.partial", ".hidden/x"):
        (place / name).write_bytes(b"none of ours")
    assert objects.sizes() == {"x": 1, "a/c.0": 0, "a/b/c.1.0": 3}


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CacheError, match=r"cache: a file, so it is not a MAV cache\. Name a"):
        LocalObjectStore(tmp_path / "cache").sizes()


def test_half_written_files_are_tidied_away_and_others_are_not(
    objects: LocalObjectStore, tmp_path: Path
) -> None:
    objects.write("a/x.partial", b"1", None)
    for name in (".zarr.json.77.partial", "a/.x.partial.77.partial", ".mutex", ".DS_Store"):
        (tmp_path / "place" / name).write_bytes(b"")
    objects.remove_temporaries()
    left = {str(path.relative_to(tmp_path / "place")) for path in tmp_path.rglob("*.*")}
    assert left == {"a/x.partial", ".mutex", ".DS_Store"}


def test_pruning_removes_empty_folders_and_an_empty_place(
    objects: LocalObjectStore, tmp_path: Path
) -> None:
    objects.write("kept/x", b"1", None)
    (tmp_path / "place" / "a" / "b").mkdir(parents=True)
    (tmp_path / "place" / ".mutex").write_bytes(b"")
    objects.remove_empty_dirs()
    assert names(tmp_path / "place") == {".mutex", "kept"}
    objects.delete("kept/x")
    objects.remove_empty_dirs()
    assert names(tmp_path) == set()
    objects.remove_empty_dirs()


def test_pruning_leaves_what_is_not_ours(objects: LocalObjectStore, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / ".gitignore").write_text("*")
    objects.remove_empty_dirs()
    assert names(tmp_path / "place") == {".gitignore"}


def test_free_space_is_that_of_where_the_folder_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = LocalObjectStore(tmp_path / "a" / "b").free_bytes()
    here = LocalObjectStore(tmp_path).free_bytes()
    assert free is not None
    assert here is not None
    assert abs(free - here) < 1 << 32
    monkeypatch.chdir(tmp_path)
    assert LocalObjectStore(Path("not/yet")).free_bytes() is not None


def test_an_object_is_a_file(objects: LocalObjectStore, tmp_path: Path) -> None:
    assert objects.local_path("a/x") == tmp_path / "place" / "a" / "x"
