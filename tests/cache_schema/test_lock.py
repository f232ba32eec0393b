"""The lock of a cache: one run at a time, and a run that is gone holds up nobody."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil
import pytest

from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.storage.base import ConflictError, ETag, ObjectStore, replace
from mav.cache_schema.storage.lock import (
    BEAT_SECONDS,
    LOCK,
    Holder,
    read_holder,
    require_held,
    run_lock,
)
from mav.cache_schema.storage.open import open_object_store
from tests.support.caches.written_caches import lock_at_once
from tests.support.running.limits import EVENT, Clock, wait_until


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return open_object_store(tmp_path / "cache")


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mav.cache_schema.storage.lock.BEAT_SECONDS", 0.05)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of who watches another's lock."""
    found = Clock()
    monkeypatch.setattr("mav.cache_schema.storage.lock.time", found)
    return found


def held_by(objects: ObjectStore, **changes: Any) -> Holder:
    """Leave the lock of a run that is alive on this machine, or one that differs from it."""
    with lock_at_once(objects):
        found = read_holder(objects)
    assert found is not None
    holder = dataclasses.replace(found, run="another", **changes)
    replace(objects, LOCK, json.dumps(dataclasses.asdict(holder)).encode())
    return holder


# Holding it


def test_the_lock_names_its_holder(objects: ObjectStore) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with lock_at_once(objects) as run:
        holder = read_holder(objects)
        assert holder is not None
        assert (holder.run, holder.pid, holder.host) == (run, os.getpid(), gethostname())
        assert abs(holder.process_started - psutil.Process().create_time()) < 1
        assert before <= datetime.fromisoformat(holder.since) <= datetime.now(UTC)
        require_held(objects, run)
    assert read_holder(objects) is None


def test_runs_have_ids_of_their_own(objects: ObjectStore) -> None:
    runs = set()
    for _ in range(3):
        with lock_at_once(objects) as run:
            runs.add(run)
    assert len(runs) == 3


def test_a_second_holder_is_refused_and_told_who_has_it(objects: ObjectStore) -> None:
    with lock_at_once(objects) as run:
        holder = read_holder(objects)
        assert holder is not None
        with pytest.raises(CacheBusyError) as caught, lock_at_once(objects):
            pass
        message = str(caught.value)
        assert message.startswith(f"{objects.location}: another run is writing to this cache, ")
        assert f"process {os.getpid()} on {gethostname()} since {holder.since}" in message
        assert "Wait until it has finished, or stop it" in message
        require_held(objects, run)


def test_of_many_that_ask_at_once_one_has_it(objects: ObjectStore) -> None:
    together = threading.Barrier(8)
    released = threading.Event()
    outcomes: list[str] = []

    def ask() -> None:
        together.wait(EVENT)
        try:
            with lock_at_once(objects) as run:
                outcomes.append(run)
                released.wait(EVENT)
        except CacheBusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(outcomes) == 8)
    holder = read_holder(objects)
    released.set()
    for thread in threads:
        thread.join()
    assert outcomes.count("busy") == 7
    assert holder is not None
    assert holder.run in outcomes


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_it_is_given_back_however_the_run_ends(
    objects: ObjectStore, tmp_path: Path, kept: bool, fails: bool
) -> None:
    try:
        with lock_at_once(objects):
            if kept:
                objects.write("labels/c.0", b"x", None)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert objects.sizes() == ({"labels/c.0": 1} if kept else {})
    # Nothing was written: then not even a folder is left.
    assert (tmp_path / "cache").exists() == kept
    assert not any(thread.name == "lock" for thread in threading.enumerate())


def test_the_heart_beats(objects: ObjectStore, quick_beats: None) -> None:
    with lock_at_once(objects) as run:
        seen: set[ETag | None] = set()

        def beaten() -> bool:
            seen.add(objects.version(LOCK))
            return len(seen) == 4

        wait_until(beaten)
        holder = read_holder(objects)
        assert holder is not None
        assert holder.beat >= 3
        require_held(objects, run)


# Holders that are gone


def gone_process() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


def test_a_holder_whose_process_is_gone_is_taken_over_at_once(objects: ObjectStore) -> None:
    held_by(objects, pid=gone_process().pid)
    with lock_at_once(objects) as run:
        require_held(objects, run)


def test_a_process_that_only_has_the_holders_number_is_not_the_holder(objects: ObjectStore) -> None:
    started = psutil.Process().create_time()
    held_by(objects, process_started=started - 100)
    with lock_at_once(objects) as run:
        require_held(objects, run)


def test_a_process_that_is_dead_but_not_waited_for_holds_nothing(objects: ObjectStore) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        zombie = psutil.Process(process.pid)
        started = zombie.create_time()
        wait_until(lambda: zombie.status() == psutil.STATUS_ZOMBIE)
        held_by(objects, pid=process.pid, process_started=started)
        with lock_at_once(objects) as run:
            require_held(objects, run)
    finally:
        process.wait()


def test_a_process_that_lives_and_does_not_beat_still_holds_it(objects: ObjectStore) -> None:
    # Stopped by hand, or waiting for a slow disk: it may go on at any moment.
    held_by(objects)
    with pytest.raises(CacheBusyError), lock_at_once(objects):
        pass


def test_a_silent_holder_elsewhere_is_taken_over_after_some_beats(
    objects: ObjectStore, clock: Clock, messages: list[str]
) -> None:
    held_by(objects, machine="elsewhere", host="node7", pid=1)
    messages.clear()
    with run_lock(objects) as run:
        assert clock.now >= 4 * BEAT_SECONDS
        require_held(objects, run)
    (line,) = messages
    assert line.startswith(f"{objects.location} is locked by process 1 on node7 since ")


@pytest.mark.parametrize("beats", [0.0, 2.0, 3.9])
def test_a_holder_elsewhere_that_beats_is_left_alone(
    objects: ObjectStore, clock: Clock, beats: float, messages: list[str]
) -> None:
    """After how many beats' time it does so, even if whoever watches does not wake until later."""
    holder = held_by(objects, machine="elsewhere", host="node7", pid=1)

    def beat(seconds: float) -> None:
        if clock.now + seconds >= beats * BEAT_SECONDS:
            data = json.dumps(dataclasses.asdict(holder) | {"beat": 1}).encode()
            replace(objects, LOCK, data)
            clock.now += 100 * BEAT_SECONDS
            clock.sleeping = lambda _: None

    clock.sleeping = beat
    messages.clear()
    with (
        pytest.raises(CacheBusyError, match="process 1 on node7"),
        run_lock(objects),
    ):
        pass
    found = read_holder(objects)
    assert found is not None
    assert (found.run, found.beat) == ("another", 1)


def test_a_holder_elsewhere_whose_process_number_is_taken_here_is_still_watched(
    objects: ObjectStore, clock: Clock, messages: list[str]
) -> None:
    held_by(objects, machine="elsewhere")
    messages.clear()
    with run_lock(objects):
        pass
    assert len(messages) == 1


# Losing it


def test_a_run_whose_lock_was_taken_over_is_told(objects: ObjectStore, quick_beats: None) -> None:
    with lock_at_once(objects) as run:
        wait_until(lambda: taken_over(objects))
        with pytest.raises(CacheBusyError) as caught:
            require_held(objects, run)
        assert "this run has lost the cache's lock to process 1 on node7" in str(caught.value)
        assert "what it committed is kept" in str(caught.value)
        wait_until(lambda: not any(t.name == "lock" for t in threading.enumerate()))
    # It is the other's: neither overwritten by a beat nor removed at the end.
    found = read_holder(objects)
    assert found is not None
    assert found.host == "node7"


def taken_over(objects: ObjectStore) -> bool:
    found = read_holder(objects)
    assert found is not None
    other = dataclasses.replace(found, run="another", machine="elsewhere", host="node7", pid=1)
    try:
        data = json.dumps(dataclasses.asdict(other)).encode()
        objects.write(LOCK, data, objects.version(LOCK))
    except ConflictError:
        return False  # it has just beaten
    return True


def test_a_run_whose_lock_was_removed_is_told(objects: ObjectStore) -> None:
    with lock_at_once(objects) as run:
        objects.delete(LOCK)
        with pytest.raises(CacheBusyError, match="its lock was removed"):
            require_held(objects, run)
    assert objects.sizes() == {}


def test_another_run_holds_nothing_of_this_one(objects: ObjectStore) -> None:
    with lock_at_once(objects), pytest.raises(CacheBusyError, match="lost the cache's"):
        require_held(objects, "another")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b'{"run": "x", "pid": 3}', b"\xff\xfe"]
)
def test_a_damaged_lock_is_named_with_the_remedy(objects: ObjectStore, data: bytes) -> None:
    objects.write(LOCK, data, None)
    with pytest.raises(CacheError) as caught, lock_at_once(objects):
        pass
    assert not isinstance(caught.value, CacheBusyError)
    assert str(caught.value).startswith(f"{objects.location}/{LOCK}: damaged")
    assert "If no extraction is running, delete this object" in str(caught.value)
    assert objects.read(LOCK).tobytes() == data
