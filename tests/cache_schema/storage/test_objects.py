"""A folder of objects: conditional, whole and durable writes, and nothing left lying about."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mav.cache_schema.errors import CacheError
from mav.cache_schema.storage.addresses import is_remote
from mav.cache_schema.storage.base import ConflictError, ETag, replace
from mav.cache_schema.storage.local import LocalObjectStore
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.stored_objects import content, names
from tests.support.caches.written_caches import leftovers

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
