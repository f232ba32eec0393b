"""Objects and locks on a server: conditional writes, races, holders that are gone."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mav.cache_schema.errors import CacheBusyError
from mav.cache_schema.storage.base import ConflictError, ETag, ObjectStore, replace
from mav.cache_schema.storage.lock import LOCK, Holder, read_holder, run_lock
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.written_caches import lock_at_once
from tests.support.running.limits import Clock


def content(objects: ObjectStore, key: str) -> bytes:
    return objects.read(key).tobytes()


@pytest.mark.parametrize("data", [b"", b"content", memoryview(bytes(range(256)) * 999)])
def test_what_is_written_is_read(objects: ObjectStore, data: bytes) -> None:
    version = objects.write("a/b/c.0", data, None)
    assert content(objects, "a/b/c.0") == bytes(data)
    assert objects.read("a/b/c.0").dtype == np.uint8
    assert version == objects.version("a/b/c.0")
    assert version.size == len(data)


def test_an_object_is_read_in_parts(objects: ObjectStore) -> None:
    data = bytes(range(256)) * 99
    objects.write("key", data, None)
    parts = [np.empty(size, np.uint8) for size in (1, 0, 4, 25_000, len(data) - 25_005)]
    assert list(objects.read_parts("key", parts)) == [0, 1, 2, 3, 4]
    assert b"".join(part.tobytes() for part in parts) == data


@pytest.mark.parametrize(
    ("sizes", "full", "message"),
    [
        ([], 0, "it is longer than expected"),
        ([3, 3], 2, "it is longer than expected"),
        ([3, 5], 1, "it is shorter than expected"),
        ([8], 0, "it is shorter than expected"),
        ([7, 1], 1, "it is shorter than expected"),
    ],
)
def test_an_object_of_another_size_than_its_parts_is_refused(
    objects: ObjectStore, sizes: list[int], full: int, message: str
) -> None:
    objects.write("key", b"content", None)
    parts = [np.empty(size, np.uint8) for size in sizes]
    found = []
    with pytest.raises(ValueError, match=message):
        for number in objects.read_parts("key", parts):
            found.append(number)  # noqa: PERF402 (what came before the error is wanted)
    assert found == list(range(full))


def test_what_is_not_there(objects: ObjectStore) -> None:
    assert objects.version("none") is None
    assert objects.sizes() == {}
    with pytest.raises(FileNotFoundError):
        objects.read("none")
    with pytest.raises(FileNotFoundError):
        list(objects.read_parts("none", []))
    objects.delete("none")
    assert objects.free_bytes() is None
    assert objects.local_path("none") is None


def test_a_new_object_is_refused_where_one_is(objects: ObjectStore) -> None:
    first = objects.write("key", b"first", None)
    with pytest.raises(ConflictError):
        objects.write("key", b"other", None)
    assert content(objects, "key") == b"first"
    assert objects.version("key") == first


def test_an_object_is_replaced_in_the_version_expected_only(objects: ObjectStore) -> None:
    first = objects.write("key", b"first", None)
    second = objects.write("key", b"second", first)
    assert objects.version("key") == second != first
    for stale in (first, dataclasses.replace(second, tag='"0"')):
        with pytest.raises(ConflictError):
            objects.write("key", b"third", stale)
    assert content(objects, "key") == b"second"
    objects.delete("key")
    with pytest.raises(ConflictError):
        objects.write("key", b"third", second)
    assert objects.sizes() == {}


def test_replace_takes_any_version_and_none(objects: ObjectStore) -> None:
    replace(objects, "key", b"one")
    replace(objects, "key", b"three")
    assert objects.sizes() == {"key": 5}


def test_sizes_are_those_under_the_prefix(objects: ObjectStore, url: str) -> None:
    objects.write("zarr.json", b"12", None)
    objects.write("labels/c.0", b"", None)
    open_object_store(f"{url}0").write("zarr.json", b"1", None)
    open_object_store(f"{url}/labels/deep").write("c.1", b"123", None)
    assert objects.sizes() == {"zarr.json": 2, "labels/c.0": 0, "labels/deep/c.1": 3}
    assert open_object_store(f"{url}/").sizes() == objects.sizes()
    assert open_object_store(f"{url}/labels").sizes() == {"c.0": 0, "deep/c.1": 3}
    assert open_object_store(f"{url}/lab").sizes() == {}
    assert open_object_store(f"{url}/").location == url


def test_deleting_and_withdrawing(objects: ObjectStore) -> None:
    objects.write("key", b"mine", None)
    objects.rollback("key", b"mine")
    assert content(objects, "key") == b"mine"  # whole if it is there
    objects.delete("key")
    objects.delete("key")
    objects.remove_temporaries()
    objects.remove_empty_dirs()
    assert objects.version("key") is None


def test_a_write_whose_answer_was_lost_is_known_again(objects: ObjectStore) -> None:
    # The library asks again, and meets what its first request wrote.
    first = objects.write("key", b"mine", None)
    assert objects.write("key", b"mine", None) == first
    second = objects.write("key", b"mine again", first)
    assert objects.write("key", b"mine again", first) == second
    for other in (b"others", b"mine agair"):
        with pytest.raises(ConflictError):
            objects.write("key", other, None)
        with pytest.raises(ConflictError):
            objects.write("key", other, first)
    assert content(objects, "key") == b"mine again"


def raced(writers: int, attempt: Callable[[int], ETag]) -> list[int]:
    """Let several write at once; return those who were not refused."""
    start = threading.Barrier(writers)

    def one(number: int) -> bool:
        start.wait()
        try:
            attempt(number)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        return [number for number, won in enumerate(pool.map(one, range(writers))) if won]


def test_one_writer_creates_each_object(url: str) -> None:
    # All keys at once: requests that contend for one wait for a second here.
    places = [open_object_store(url) for _ in range(4)]
    keys = [f"key.{number // 4}" for number in range(40)]
    winners = raced(40, lambda n: places[n % 4].write(keys[n], f"{n}".encode(), None))
    assert [keys[number] for number in winners] == sorted(set(keys), key=keys.index)
    for number in winners:
        assert content(places[0], keys[number]) == f"{number}".encode()


def test_one_writer_replaces_each_version(url: str) -> None:
    places = [open_object_store(url) for _ in range(3)]
    keys = [f"key.{number // 3}" for number in range(12)]
    begun = {key: places[0].write(key, b"begun", None) for key in keys[::3]}
    winners = raced(12, lambda n: places[n % 3].write(keys[n], f"{n}".encode(), begun[keys[n]]))
    assert [keys[number] for number in winners] == list(begun)
    for number in winners:
        assert content(places[0], keys[number]) == f"{number}".encode()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of who watches another's lock."""
    found = Clock()
    monkeypatch.setattr("mav.cache_schema.storage.lock.time", found)
    return found


def test_the_lock_is_held_and_given_back(objects: ObjectStore, url: str) -> None:
    with lock_at_once(objects):
        busy = pytest.raises(CacheBusyError, match=f"process {os.getpid()} on ")
        with busy, lock_at_once(open_object_store(url)):
            raise AssertionError
        assert objects.sizes().keys() == {LOCK}
    assert objects.sizes() == {}
    with lock_at_once(open_object_store(url)):
        pass


def left_behind(objects: ObjectStore, **changes: Any) -> Holder:
    """Write the lock of a run that is not there any more."""
    with lock_at_once(objects):
        holder = read_holder(objects)
    assert holder is not None
    left = dataclasses.replace(holder, run="other", **changes)
    objects.write(LOCK, json.dumps(dataclasses.asdict(left)).encode(), None)
    return left


def test_the_lock_of_a_process_that_is_gone_is_taken_over(objects: ObjectStore) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left_behind(objects, pid=ended.pid)
    with lock_at_once(objects) as run:
        found = read_holder(objects)
        assert found is not None and found.run == run
    assert objects.sizes() == {}


def test_the_lock_of_a_silent_machine_is_taken_over(
    objects: ObjectStore, clock: Clock, messages: list[str]
) -> None:
    left_behind(objects, machine="elsewhere", host="elsewhere")
    messages.clear()
    with run_lock(objects):
        pass
    assert len(messages) == 1 and f"{objects.location} is locked by process" in messages[0]
    assert objects.sizes() == {}


def test_the_lock_of_a_machine_that_beats_is_left_alone(
    objects: ObjectStore, clock: Clock, messages: list[str]
) -> None:
    left = left_behind(objects, machine="elsewhere", host="elsewhere")

    def beat(_: float) -> None:
        data = json.dumps(dataclasses.asdict(dataclasses.replace(left, beat=1))).encode()
        replace(objects, LOCK, data)

    clock.sleeping = beat
    messages.clear()
    with (
        pytest.raises(CacheBusyError, match="on elsewhere since"),
        run_lock(objects),
    ):
        raise AssertionError
