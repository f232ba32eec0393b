"""A folder of objects that many write to at once: each version is written by one of them."""

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mav.cache_schema.storage.base import ConflictError
from mav.cache_schema.storage.local import LocalObjectStore
from tests.support.caches.written_caches import leftovers, quick_disk
from tests.support.running.limits import EVENT

WRITERS = 8
ROUNDS = 100


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    with quick_disk():
        yield


@pytest.fixture(autouse=True)
def threads_that_change_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(params=["hard links", "no hard links"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalObjectStore:
    def fail(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "no hard links":
        monkeypatch.setattr("mav.cache_schema.storage.local.os.link", fail)
    return LocalObjectStore(tmp_path / "place")


def race(write: Callable[[int, int], None]) -> list[list[int]]:
    """Let all writers write at once, round after round; return who won each."""
    together = threading.Barrier(WRITERS)
    won: list[list[int]] = [[] for _ in range(ROUNDS)]

    def run(writer: int) -> None:
        for number in range(ROUNDS):
            together.wait(EVENT)
            try:
                write(writer, number)
            except ConflictError:
                continue
            won[number].append(writer)

    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(run, writer) for writer in range(WRITERS)]:
            done.result()
    return won


def data(writer: int, number: int) -> bytes:
    # Of many sizes, so that two writers' bytes in one object show.
    return f"{writer} wrote {number}. ".encode() * (1 + 100 * writer)


def test_one_writer_creates_each_object(objects: LocalObjectStore) -> None:
    def write(writer: int, number: int) -> None:
        objects.write(f"a/c.{number}", data(writer, number), None)

    won = race(write)
    assert [len(winners) for winners in won] == [1] * ROUNDS
    for number, (winner,) in enumerate(won):
        assert objects.read(f"a/c.{number}").tobytes() == data(winner, number)
    assert len({winner for (winner,) in won}) > 1, "they did not race"
    assert leftovers(Path(objects.location)) == []


def test_one_writer_replaces_each_version(objects: LocalObjectStore) -> None:
    versions = [objects.write("x", b"first", None)]
    found: list[bytes] = []
    agreed = threading.Barrier(WRITERS)

    def write(writer: int, number: int) -> None:
        expected = versions[number]
        try:
            versions.append(objects.write("x", data(writer, number), expected))
        finally:
            if agreed.wait(EVENT) == 0:
                found.append(objects.read("x").tobytes())

    won = race(write)
    assert [len(winners) for winners in won] == [1] * ROUNDS
    assert found == [data(winner, number) for number, (winner,) in enumerate(won)]
    assert len(versions) == ROUNDS + 1
    assert leftovers(Path(objects.location)) == []


def test_a_name_that_another_takes_just_before_it_is_given_is_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = LocalObjectStore(tmp_path / "place")
    link = os.link

    def link_late(source: Path, target: Path) -> None:
        target.write_bytes(b"another's")
        link(source, target)

    monkeypatch.setattr("mav.cache_schema.storage.local.os.link", link_late)
    with pytest.raises(ConflictError):
        objects.write("x", b"mine", None)
    assert objects.read("x").tobytes() == b"another's"


@pytest.mark.parametrize("replaces", [False, True])
def test_versions_are_compared_when_all_others_are_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    def fail(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("mav.cache_schema.storage.local.os.link", fail)
    objects = LocalObjectStore(tmp_path / "place")
    objects.write("other", b"so that there is a place", None)
    expected = objects.write("x", b"first", None) if replaces else None
    asking = threading.Event()
    flock = fcntl.flock

    def asked(file: int, operation: int) -> None:
        asking.set()
        flock(file, operation)

    monkeypatch.setattr("mav.cache_schema.storage.local.fcntl.flock", asked)
    with ThreadPoolExecutor(1) as pool:
        with (tmp_path / "place" / ".mutex").open("wb") as mutex:
            flock(mutex.fileno(), fcntl.LOCK_EX)
            writing = pool.submit(objects.write, "x", b"mine", expected)
            assert asking.wait(EVENT)
            assert not writing.done()
            (tmp_path / "another").write_bytes(b"another's")
            (tmp_path / "another").rename(tmp_path / "place" / "x")
        with pytest.raises(ConflictError):
            writing.result(EVENT)
    assert objects.read("x").tobytes() == b"another's"
    assert leftovers(tmp_path) == []


def test_an_object_that_goes_while_all_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the lock does, when another run ends while this one looks around."""
    objects = LocalObjectStore(tmp_path / "place")
    objects.write("kept", b"1", None)
    objects.write("lock.json", b"12", None)
    scandir = os.scandir

    def then_gone(folder: str) -> list[os.DirEntry[str]]:
        entries = list(scandir(folder))
        (tmp_path / "place" / "lock.json").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr("mav.cache_schema.storage.local.os.scandir", then_gone)
    assert objects.sizes() == {"kept": 1}


@pytest.mark.parametrize("call", [1, 2])
def test_a_folder_that_another_prunes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """As a run does that ends without having written anything, just when another begins."""
    objects = LocalObjectStore(tmp_path / "place")
    real, calls = os.open, []

    def pruned_before(path: Path, flags: int, *mode: int) -> int:
        if Path(path).is_relative_to(tmp_path / "place"):
            calls.append(path)
            if len(calls) == call:
                objects.remove_empty_dirs()
        return real(path, flags, *mode)

    monkeypatch.setattr("mav.cache_schema.storage.local.os.open", pruned_before)
    objects.write("x", b"1", None)
    assert objects.sizes() == {"x": 1}
    assert leftovers(tmp_path) == []
