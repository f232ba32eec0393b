"""The lock changes and goes away while other things happen, and while the disk fails."""

import errno
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cache_schema import local_objects, lock
from cache_schema.objects import open_objects
from tests.faults.cache_program import Whole, decoded_digest, extract
from tests.faults.fork_server import ForkServer
from tests.faults.watched_os import Count, Watched, watching
from tests.written_caches import silent


@pytest.mark.xfail(
    reason="LocalObjects.sizes fails where an object goes away while it lists them", strict=True
)
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


def beats_after(location: Path, failures: dict[str, int]) -> int:
    """Hold a lock whose heart meets failures; count how often it beats after them.

    Args:
        location: The cache.
        failures: Name of a call -> which of its calls fails, from 1.
    """
    calls: Counter[str] = Counter()

    def around(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if threading.current_thread().name == "lock":
            calls[name] += 1
            if calls[name] == failures.get(name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call()

    names = ("open", "write", "fsync", "rename", "close", "stat")
    objects = open_objects(location)
    with (
        mock.patch.object(lock, "BEAT_SECONDS", 0.01),
        mock.patch.object(local_objects, "os", Watched(os, names, around)),
        lock.run_lock(objects, say=silent),
    ):
        beats = []
        for _ in range(2):
            time.sleep(0.3)
            beats.append(json.loads(bytes(objects.read(lock.LOCK)))["beat"])
    assert all(calls[name] >= number for name, number in failures.items()), calls
    return int(beats[1] - beats[0])


@pytest.mark.parametrize(
    "failures",
    [
        {"open": 1},
        {"write": 1},
        {"fsync": 1},
        {"rename": 1},
        {"close": 1},
        {"stat": 1},
        # The beat is there, but not its flush; the next one meets it, and cannot look at it.
        pytest.param(
            {"fsync": 2, "stat": 3},
            marks=pytest.mark.xfail(
                reason="lock._beat catches no error of what it does about a conflict", strict=True
            ),
        ),
    ],
    ids=str,
)
def test_the_heart_goes_on_beating(
    failures: dict[str, int], forks: ForkServer, place: Path
) -> None:
    """Or a run on another machine would take a living one for dead."""
    assert forks.value(beats_after, place / "cache", failures) > 3
