"""A run is killed before and after every call that changes the disk, and then goes on.

Nothing but the killed process is lost, as what it had handed to the kernel stays. Between two calls
nothing reaches the disk, so these are all the states that a kill can leave behind. A run of three
blocks makes about 510 such calls: its lock, the creation, the blocks, the completion, the release.
"""

import errno
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final

import pytest

from mav.cache_schema.creation import require_free
from mav.cache_schema.verify import VerifyReport, verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import begin, draft, finish, held
from tests.support.faults.cache_program import (
    BLOCKS,
    Journal,
    Whole,
    committed_blocks,
    examine,
    extract,
    journal_blocks,
)
from tests.support.faults.fork_server import ForkServer
from tests.support.faults.watched_os import Count, Fail, Kill, watching

SOME: Final = 29
"""The quick tests take one call of so many; no pattern of calls repeats after as many."""


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a run did that went on where another was killed.

    Attributes:
        committed: Blocks that had a commit record when it began.
        computed: Blocks that it computed.
        whole: What became of the cache.
    """

    committed: list[int]
    computed: list[int]
    whole: Whole


def run_counted(location: Path) -> list[str]:
    count = Count()
    with watching(count):
        extract(location)
    return count.names


def run_killed(location: Path, at: int, after: bool) -> None:
    with watching(Kill(at, after=after)):
        extract(location)


def run_on(location: Path) -> Resumed:
    committed = committed_blocks(location)
    journal = location.with_suffix(".journal")
    with watching(Count()):
        extract(location, Journal(journal))
    return Resumed(
        committed=committed,
        computed=journal_blocks(journal, "computed"),
        whole=examine(location),
    )


def go_on(forks: ForkServer, location: Path, expected: Whole) -> int:
    """Go on with a cache and compare; return how many blocks it had already."""
    resumed: Resumed = forks.value(run_on, location)
    assert resumed.whole == expected
    assert resumed.computed == [b for b in range(BLOCKS) if b not in resumed.committed]
    shutil.rmtree(location.parent)
    return len(resumed.committed)


def new_place(folder: Path) -> Path:
    folder.mkdir()
    return folder / "cache"


def kill_everywhere(forks: ForkServer, place: Path, expected: Whole, every: int) -> int:
    names = forks.value(run_counted, new_place(place / "counted"))
    points = [(at, after) for at in range(0, len(names), every) for after in (False, True)]
    kept: Counter[int] = Counter()
    for at, after in points:
        location = new_place(place / f"{at} {after}")
        assert forks.run(run_killed, location, at, after).signal == SIGKILL
        kept[go_on(forks, location, expected)] += 1
    assert len(names) > 500
    assert set(kept) == {0, 1, 2, 3}  # blocks that were there already
    return len(points)


def test_killed_at_some_calls(forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    assert kill_everywhere(forks, place, undisturbed, SOME) > 30


@pytest.mark.slow
def test_killed_at_every_call(forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    assert kill_everywhere(forks, place, undisturbed, 1) > 1000


def copied(location: Path, folder: Path) -> Path:
    """A copy of what a killed run left; modification times and all."""
    place = new_place(folder)
    if location.exists():
        shutil.copytree(location, place)
    return place


@pytest.mark.slow
def test_killed_again_while_going_on(forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    calls = len(forks.value(run_counted, new_place(place / "counted")))
    points = 0
    for first in range(5, calls, 100):
        killed = new_place(place / str(first))
        assert forks.run(run_killed, killed, first, False).signal == SIGKILL
        for second in range(calls + 100):
            location = copied(killed, place / f"{first} {second}")
            again = forks.run(run_killed, location, second, False)
            if not again.signal:
                break
            go_on(forks, location, undisturbed)
            points += 1
    assert points > 1500


def run_failing_and_killed(location: Path, fail: int, kill: int) -> bool:
    """Let flushing fail once and kill at a call after that; tell, if not killed, whether at all."""
    failing, killing = Fail("fsync", fail, errno.EIO), Kill(kill)

    def around(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if failing.failed:
            return killing(name, call, args)
        return failing(name, call, args)

    with watching(around):
        try:
            extract(location)
        except OSError:
            return True
    return False


def flushes_of_creation(location: Path) -> int:
    count = Count()
    flushes = {}
    with watching(count):
        extract(location, lambda line: flushes.update({line: count.names.count("fsync")}))
    return flushes["created"]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_while_clearing_away_a_creation_that_failed(
    forks: ForkServer, undisturbed: Whole, place: Path, every: int
) -> None:
    """The last flush of a creation is that of the root, after which all is there to be removed."""
    last = forks.value(flushes_of_creation, new_place(place / "counted")) - 1
    for kill in range(0, 1000, every):
        location = new_place(place / str(kill))
        ended = forks.run(run_failing_and_killed, location, last, kill)
        if not ended.signal:
            assert ended.value is True
            break
        go_on(forks, location, undisturbed)
    assert kill > 50


def create_killed(location: Path, encoding: str, at: int) -> None:
    with watching(Kill(at)), held(location) as (objects, run):
        begin(objects, run, *draft(encoding=encoding))


def make_dense(location: Path) -> VerifyReport:
    """Go on with a cache of dense logits, or create it; say what there is in the end."""
    manifest, plan = draft(encoding="dense")
    with watching(Count()), held(location) as (objects, run):
        there = require_free(objects)
        writer = CacheWriter(objects, run) if there else begin(objects, run, manifest, plan)
        finish(writer, manifest, plan)
    return verify(objects, full=True)


@pytest.mark.slow
def test_a_killed_creation_of_another_kind_leaves_nothing(forks: ForkServer, place: Path) -> None:
    """The first was of factored logits, with an array more; the second is killed, and the third."""
    unknown = {}
    for kill in range(0, 1000, 3):
        location = new_place(place / str(kill))
        assert forks.run(create_killed, location, "factored", 200).signal == SIGKILL
        killed = forks.run(create_killed, location, "dense", kill).signal
        report: VerifyReport = forks.value(make_dense, location)
        assert report.sound
        if report.unknown:
            unknown[kill] = report.unknown
        if not killed:
            break
        shutil.rmtree(location.parent)
    assert kill > 250
    assert not unknown


def changes_that_escape(location: Path) -> list[str]:
    """Go on with a cache; return what changed the disk there without being watched."""
    watched = threading.local()
    found = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        changing = event.startswith(("os.", "shutil.")) and event not in (
            "os.scandir",
            "os.listdir",
            "os.walk",
        )
        if event == "open" and isinstance(args[2], int):
            changing = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        here = str(args[0]).startswith(str(location)) if args else False
        if changing and here and not getattr(watched, "inside", False):
            found.append(f"{event}{args}")

    def around(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        watched.inside = True
        try:
            return call()
        finally:
            watched.inside = False

    sys.addaudithook(hook)  # for the rest of this process, which is short
    with watching(around):
        extract(location)
    return found


def test_no_change_of_the_disk_goes_unwatched(forks: ForkServer, place: Path) -> None:
    calls = len(forks.value(run_counted, new_place(place / "counted")))
    escaped = set()
    for at in range(0, calls, 20):
        location = new_place(place / str(at))
        forks.run(run_killed, location, at, False)
        escaped.update(forks.value(changes_that_escape, location))
    assert not escaped
