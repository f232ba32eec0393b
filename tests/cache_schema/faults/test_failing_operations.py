"""Each call that changes the disk fails in turn, in each way it can; then the run is repeated.

A full disk, a failing disk, too many open files, a file system without locks. Whatever fails, and
whenever: the run says so, commits nothing that is not whole, lets go of the lock, and the next run
makes the same cache as if nothing had happened.
"""

import errno
import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from mav.cache_schema.errors import CacheError
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.support.faults.cache_program import (
    Journal,
    Whole,
    committed_blocks,
    examine,
    extract,
    journal_blocks,
)
from tests.support.faults.fork_server import Ended, ForkServer
from tests.support.faults.watched_os import Around, Count, Fail, watching

FAILURES: Final[dict[str, tuple[int, ...]]] = {
    "open": (errno.ENOSPC, errno.EIO, errno.EMFILE),
    "write": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "link": (errno.ENOSPC, errno.EIO),
    "rename": (errno.ENOSPC, errno.EIO),
    "close": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "utime": (errno.EIO,),
    "flock": (errno.ENOLCK,),
}
"""Call -> the errors it is made to end with."""

LEAST: Final = {
    "open": 300,
    "write": 80,
    "fsync": 190,
    "link": 70,
    "rename": 8,
    "close": 190,
    "mkdir": 25,
    "utime": 40,
    "flock": 4,
}
"""Call -> how many failures of it there are at the least, over all errors."""

SOME: Final = 19
"""The quick tests let one call of so many fail."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run went in which something failed.

    Attributes:
        failed: How many calls failed.
        raised: What the run raised, if it raised.
        journal: What it had done.
        lock_left: Whether the lock is still there, its holder alive.
        committed: Blocks that have a commit record.
        damaged: Those among them that are not whole.
    """

    failed: int
    raised: BaseException | None
    journal: list[str]
    lock_left: bool
    committed: list[int]
    damaged: list[int]

    @property
    def under_way(self) -> set[int]:
        """The block that was begun and not written."""
        begun, written = (
            {int(line.split()[1]) for line in self.journal if line.startswith(verb)}
            for verb in ("computed", "wrote")
        )
        return begun - written


def run_failing(location: Path, failing: Fail) -> Outcome:
    journal: list[str] = []
    raised: BaseException | None = None
    with watching(failing):
        try:
            extract(location, journal.append)
        except (OSError, CacheError) as error:
            raised = error
    committed = committed_blocks(location)
    damaged = verify(open_object_store(location), full=True).damaged_blocks if committed else {}
    return Outcome(
        failed=failing.failed,
        raised=raised,
        journal=journal,
        lock_left=(location / "lock.json").exists(),
        committed=committed,
        damaged=sorted(damaged),
    )


def run_on(location: Path) -> tuple[list[int], Whole]:
    with watching(Count()):
        journal = Journal(location.with_suffix(".journal"))
        extract(location, journal)
    return journal_blocks(journal.path, "computed"), examine(location)


def check(forks: ForkServer, folder: Path, failing: Fail, expected: Whole) -> Outcome:
    """Let something fail, look at what is left, and repeat the run."""
    folder.mkdir()
    location = folder / "cache"
    outcome: Outcome = forks.value(run_failing, location, failing)
    assert not outcome.damaged, outcome
    if outcome.failed:
        assert outcome.raised, outcome
        assert not outcome.under_way & set(outcome.committed), outcome
        computed, whole = forks.value(run_on, location)
        assert not set(computed) & set(outcome.committed)
        assert whole == expected
    else:
        assert not outcome.raised
        assert examine(location) == expected
    shutil.rmtree(folder)
    return outcome


def fail_one_by_one(forks: ForkServer, place: Path, expected: Whole, kind: str, every: int) -> int:
    found: Counter[str] = Counter()
    for offset, error in enumerate(FAILURES[kind]):
        name = errno.errorcode[error]
        for number in range(offset % every, 1000, every):
            failing = Fail(kind, number, error)
            outcome = check(forks, place / f"{name} {number}", failing, expected)
            if not outcome.failed:
                break
            # A lock stays only where taking away the lock is what failed.
            assert not outcome.lock_left or "completed" in outcome.journal, outcome
            found[name] += 1
    return found.total()


def fail_for_good(forks: ForkServer, place: Path, expected: Whole, kind: str, every: int) -> int:
    runs = 0
    for number in range(0, 1000, every):
        failing = Fail(kind, number, FAILURES[kind][0], lasting=True)
        if not check(forks, place / f"{kind} {number}", failing, expected).failed:
            break
        runs += 1
    return runs


@pytest.mark.parametrize("kind", FAILURES)
def test_some_calls_fail(kind: str, forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    assert fail_one_by_one(forks, place, undisturbed, kind, SOME) > 0


@pytest.mark.parametrize("kind", FAILURES)
def test_some_calls_fail_for_good(
    kind: str, forks: ForkServer, undisturbed: Whole, place: Path
) -> None:
    """The disk is full, or gone, and stays so until the next run."""
    assert fail_for_good(forks, place, undisturbed, kind, SOME) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_every_call_fails(kind: str, forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    assert fail_one_by_one(forks, place, undisturbed, kind, 1) >= LEAST[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILURES)
def test_every_call_fails_for_good(
    kind: str, forks: ForkServer, undisturbed: Whole, place: Path
) -> None:
    least = LEAST[kind] // len(FAILURES[kind])
    assert fail_for_good(forks, place, undisturbed, kind, 1) >= least


@pytest.mark.parametrize("kind", ["fsync", "close"])
def test_what_fails_is_named(kind: str, forks: ForkServer, place: Path) -> None:
    """These calls are given a descriptor, so the kernel's error names nothing."""
    for number in range(0, 1000, SOME):
        location = place / str(number)
        outcome: Outcome = forks.value(run_failing, location, Fail(kind, number, errno.EIO))
        if not outcome.failed:
            break
        assert isinstance(outcome.raised, OSError)
        named = Path(str(outcome.raised.filename))
        # Folders above a new one are flushed too.
        assert named.is_relative_to(place) or place.is_relative_to(named), outcome


def run_around(location: Path, around: Around) -> Whole:
    with watching(around):
        extract(location)
    return examine(location)


def without_links(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
    if name == "link":
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return call()


def byte_by_byte(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
    return os.write(args[0], args[1][:1]) if name == "write" else call()


@pytest.mark.parametrize("around", [without_links, byte_by_byte])
def test_a_poor_file_system_is_enough(
    around: Around, forks: ForkServer, undisturbed: Whole, place: Path
) -> None:
    """One that has no hard links; one that takes less than it is given."""
    assert forks.value(run_around, place / "cache", around) == undisturbed


class OutOfFiles:
    """From the nth call on no more files can be opened, be it for writing or for reading."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._calls = 0

    def __call__(self, name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if self._calls == self._at:
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        self._calls += 1
        return call()


def run_out_of_files(location: Path, number: int) -> None:
    with watching(OutOfFiles(number)):
        extract(location)


def out_of_files(forks: ForkServer, place: Path, expected: Whole, every: int) -> int:
    runs = 0
    for number in range(0, 1000, every):
        folder = place / str(number)
        folder.mkdir()
        ended: Ended = forks.run(run_out_of_files, folder / "cache", number)
        assert forks.value(run_on, folder / "cache")[1] == expected
        shutil.rmtree(folder)
        if not ended.raised:
            break
        assert {"OSError", "CacheError"} & set(ended.raised), ended.trace
        runs += 1
    return runs


def test_no_more_files_can_be_opened(forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    """Here the kernel refuses, to read as well as to write, until the process ends."""
    assert out_of_files(forks, place, undisturbed, 47) > 10


@pytest.mark.slow
def test_no_more_files_at_any_call(forks: ForkServer, undisturbed: Whole, place: Path) -> None:
    assert out_of_files(forks, place, undisturbed, 1) > 480
