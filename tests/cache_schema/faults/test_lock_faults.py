"""The lock beats, goes away or is lost while other things happen, and while the disk fails."""

import contextlib
import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any
from unittest import mock

import pytest

from mav.cache_schema.storage import local as local_objects
from mav.cache_schema.storage import lock
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import lock_at_once
from tests.support.faults.cache_program import (
    BLOCKS,
    Whole,
    content,
    decoded_digest,
    examine,
    extract,
)
from tests.support.faults.fork_server import ForkServer, fork
from tests.support.faults.watched_os import Count, Kill, Watched, watching
from tests.support.running.limits import wait_until


def test_a_run_ends_while_its_cache_is_opened(undisturbed: Whole, place: Path) -> None:
    """All processes of a run list the objects at its end, when the first one removes the lock."""
    location = place / "cache"
    with watching(Count()):
        extract(location)
    (location / lock.LOCK).write_text("{}")

    def ending(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        found = list(call())
        (location / lock.LOCK).unlink(missing_ok=True)
        return found

    with mock.patch.object(local_objects, "os", Watched(os, ("scandir",), ending)):
        assert decoded_digest(location) == undisturbed.digest


def beat_through(location: Path, failures: dict[str, int]) -> None:
    """Hold a lock whose heart meets failures, until it has beaten after them.

    Args:
        location: The cache.
        failures: Name of a call -> which of its calls fails, from 1.
    """
    left = dict(failures)

    def around(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if threading.current_thread().name == "lock" and name in left:
            left[name] -= 1
            if not left[name]:
                del left[name]
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call()

    def beat() -> int:
        return int(json.loads(bytes(objects.read(lock.LOCK)))["beat"])

    names = ("open", "write", "fsync", "rename", "close", "stat")
    objects = open_object_store(location)
    with (
        mock.patch.object(lock, "BEAT_SECONDS", 0.01),
        mock.patch.object(local_objects, "os", Watched(os, names, around)),
        lock_at_once(objects),
    ):
        wait_until(lambda: not left)
        last = beat()
        wait_until(lambda: beat() > last + 3)


@pytest.mark.parametrize(
    "failures",
    [
        {"open": 1},
        {"write": 1},
        {"fsync": 1},
        {"rename": 1},
        {"close": 1},
        {"stat": 1},
        # The beat is there, but not its flush; then it cannot be looked at, at once or at the next.
        {"fsync": 2, "stat": 2},
        {"fsync": 2, "stat": 3},
    ],
    ids=str,
)
def test_the_heart_goes_on_beating(
    failures: dict[str, int], forks: ForkServer, place: Path
) -> None:
    """Or a run on another machine would take a living one for dead."""
    forks.value(beat_through, place / "cache", failures)


def lose_and_fail(location: Path, number: int) -> None:
    """Write a block for a run that has ended; while that goes on, another makes the cache whole.

    Args:
        location: The cache, which a killed run has begun.
        number: Which of this writer's writes fails, from 0, just after the other has finished.
    """
    objects = open_object_store(location)
    found = lock.read_holder(objects)
    assert found is not None
    given = content(BLOCKS)
    writer = CacheWriter(objects, found.run)
    writes = itertools.count()

    def around(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if name == "write" and next(writes) == number:
            os.waitpid(fork(lambda: extract(location)), 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call()

    with watching(around), contextlib.suppress(OSError):
        writer.write_block(0, len(given.plan.pairs_of(0)), given.blocks[0])


def run_killed(location: Path, at: int) -> None:
    with watching(Kill(at)):
        extract(location)


def created_after(location: Path) -> int:
    count = Count()
    found = {}
    with watching(count):
        extract(location, lambda line: found.update({line: len(count.names)}))
    return found["created"]


@pytest.mark.parametrize("number", range(5))
def test_a_run_that_lost_its_lock_fails_to_write(
    number: int, forks: ForkServer, undisturbed: Whole, place: Path
) -> None:
    """One of several processes, whose first one was killed, finds the disk full.

    Its writes are the claim of a block, the three objects, and the commit.
    """
    created = forks.value(created_after, place / "counted")
    assert forks.run(run_killed, place / "cache", created).signal == SIGKILL
    forks.value(lose_and_fail, place / "cache", number)
    assert examine(place / "cache") == undisturbed
