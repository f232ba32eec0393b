"""Runs of one to four processes are killed again and again, at any time, until one gets through.

Sometimes all of them at once, sometimes one, whose fellows then fail or finish; sometimes the next
run is started while survivors of the one before still write. All calls take a random moment longer,
and locks beat fast, so that the processes meet each other in ever other ways.
"""

import ctypes
import dataclasses
import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from mav.cache_schema.errors import CacheBusyError, MAVError
from mav.cache_schema.storage import lock
from tests.support.faults.cache_program import (
    MORE_BLOCKS,
    Journal,
    Whole,
    committed_blocks,
    examine,
    extract,
    journal_blocks,
)
from tests.support.faults.fork_server import ForkServer
from tests.support.faults.team import Member, launch, reap
from tests.support.faults.watched_os import watching
from tests.support.running.limits import PROCESS

CALLS: Final = 850
"""About as many system calls as a run of one process makes that is left alone."""
LONGEST_DELAY: Final = 0.0003
MOST_RUNS: Final = 8
BUSY, FAILED = 3, 4


@dataclass(frozen=True, kw_only=True)
class Round:
    """One cache, from nothing to complete.

    Attributes:
        runs: Runs it took.
        processes: Processes of all those.
        killed: Those that were killed.
        failed: Those that failed as another one was killed.
        busy: Those that found another run writing.
        overlaps: Runs that began while survivors of an earlier one wrote.
        whole: What came of it.
    """

    runs: int
    processes: int
    killed: int
    failed: int
    busy: int
    overlaps: int
    whole: Whole


def member(
    location: Path, journal: Path, seed: float, calls: ctypes.Array[ctypes.c_ulong], me: Member
) -> None:
    """Be one process of a run; tell how it ended by the exit status, and what it does by calls."""
    moment = random.Random(f"{seed} {me.rank}")

    def slowly(name: str, call: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        calls[me.rank] += 1
        time.sleep(moment.random() * LONGEST_DELAY)
        return call()

    with watching(slowly), mock.patch.object(lock, "BEAT_SECONDS", 0.01):
        try:
            extract(location, Journal(journal), processes=me, blocks=MORE_BLOCKS)
        except CacheBusyError:
            os._exit(BUSY)
        except (MAVError, OSError):
            os._exit(FAILED)


def has_ended(process: int) -> bool:
    """Tell whether a child has ended, which may still be waited for afterwards."""
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process, how) is not None


def play(location: Path, seed: int) -> Round:
    """Start runs and kill their processes until the cache is complete."""
    signal.alarm(round(PROCESS))
    dice = random.Random(seed)
    alive: list[int] = []
    codes: list[int] = []
    runs = overlaps = 0
    complete = False
    while not complete:
        committed = [] if alive else committed_blocks(location)
        journal = location.with_suffix(f".{runs}")
        overlaps += bool(alive)
        count = dice.randint(1, 4)
        # Memory that the processes share.
        calls = (ctypes.c_ulong * count).from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        started = launch(count, partial(member, location, journal, dice.random(), calls))
        runs += 1
        if runs <= MOST_RUNS:
            moment = dice.random() * CALLS * dice.choice((0.3, 1, 1))
            while sum(calls) < moment and not all(map(has_ended, started)):
                time.sleep(LONGEST_DELAY / 2)
            victims = dice.sample(started, count if dice.random() < 0.4 else dice.randint(1, count))
            for process in victims:
                os.kill(process, signal.SIGKILL)
        alive += started
        ended = reap(alive, wait=runs >= MOST_RUNS or dice.random() < 0.7)
        alive = [process for process in alive if process not in ended]
        codes += ended.values()
        complete = all(ended.get(process) == 0 for process in started)
        # What was committed when nobody wrote, nobody computes again.
        assert not set(journal_blocks(journal, "computed")) & set(committed)
    codes += reap(alive, wait=True).values()
    assert set(codes) <= {0, BUSY, FAILED, -signal.SIGKILL}, codes
    whole = examine(location)
    # Half a beat of a lock whose holder was killed between completing the cache and letting go.
    files = [name for name in whole.files if not name.startswith(".lock.json.")]
    return Round(
        runs=runs,
        processes=len(codes),
        killed=codes.count(-signal.SIGKILL),
        failed=codes.count(FAILED),
        busy=codes.count(BUSY),
        overlaps=overlaps,
        whole=dataclasses.replace(whole, files=files),
    )


@pytest.fixture(scope="module")
def expected(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    location = tmp_path_factory.mktemp("alone") / "cache"
    forks.value(extract, location, blocks=MORE_BLOCKS)
    return examine(location)


def play_rounds(forks: ForkServer, place: Path, expected: Whole, seeds: range) -> list[Round]:
    rounds: list[Round] = []
    for seed in seeds:
        location = place / str(seed) / "cache"
        location.parent.mkdir()
        rounds.append(forks.value(play, location, seed))
        assert rounds[-1].whole == expected, seed
    return rounds


def test_a_few_rounds(forks: ForkServer, expected: Whole, place: Path) -> None:
    rounds = play_rounds(forks, place, expected, range(5))
    assert sum(found.killed for found in rounds) > 10


@pytest.mark.slow
def test_two_hundred_rounds(forks: ForkServer, expected: Whole, place: Path) -> None:
    rounds = play_rounds(forks, place, expected, range(1000, 1200))
    assert sum(found.killed for found in rounds) > 800
    assert sum(found.failed for found in rounds) > 100
    assert sum(found.overlaps for found in rounds) > 100
