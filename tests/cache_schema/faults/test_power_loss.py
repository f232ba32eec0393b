"""The power fails, at any call, on a disk that keeps only what it has to; then the run goes on.

Every state is made that such a disk may be left in: see `simulated_disk.py`. What `write_block` had
returned for must be there, whole; nothing may be read that was not written; and the next run makes
the same cache as if nothing had happened.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mav.cache_schema.errors import CacheError
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.cache_schema.faults.cache_program import (
    BLOCKS,
    Whole,
    committed_blocks,
    decoded_digest,
    examine,
    extract,
)
from tests.cache_schema.faults.fork_server import ForkServer
from tests.cache_schema.faults.simulated_disk import (
    Call,
    Recorder,
    SimulatedDisk,
    Tree,
    materialise,
)
from tests.cache_schema.faults.watched_os import Count, watching

PLACE: Final = "new/cache"
"""Where the cache is below the root of the disk; neither folder is there at first."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a power failure may have left.

    Attributes:
        tree: The files and folders.
        lines: The journal at the last moment at which it may have.
    """

    tree: Tree
    lines: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How much was looked at.

    Attributes:
        moments: Moments of power failure, one after each call.
        states: States after these, some of them alike.
        distinct: States that differ.
        checked: Those that were made real, read and gone on with.
    """

    moments: int
    states: int
    distinct: int
    checked: int


def record(root: Path) -> list[Call]:
    """Run, on what is there; return the calls that were made."""
    recorder = Recorder(root)
    with watching(recorder):
        extract(root / PLACE, recorder.log)
    return recorder.calls


def play(calls: list[Call]) -> tuple[SimulatedDisk, frozenset[str]]:
    """A disk after these calls, and their journal, the process that made them killed."""
    disk = SimulatedDisk()
    for call in calls:
        disk.play(call)
    disk.killed()
    return disk, frozenset(call.args[0] for call in calls if call.name == "log")


def check_states(
    before: list[Call], calls: list[Call], folder: Path, expected: Whole, every: int
) -> Figures:
    """Let the power fail after each call that follows on others; check one of so many states."""
    disk, lines = play(before)
    found: dict[frozenset[tuple[str, bytes | None]], State] = {}
    states = 0
    for moment, call in enumerate(calls):
        disk.play(call)
        if call.name == "log":
            lines |= {call.args[0]}
        for tree in disk.after_failures(seed=moment):
            states += 1
            # The later the moment, the more must be there.
            found[frozenset(tree.items())] = State(tree=tree, lines=lines)
    chosen = list(found.values())[::every]
    for number, state in enumerate(chosen):
        root = folder / str(number)
        materialise(state.tree, root)
        check_state(state, root / PLACE, expected)
        shutil.rmtree(root)
    return Figures(moments=len(calls), states=states, distinct=len(found), checked=len(chosen))


def check_state(state: State, location: Path, expected: Whole) -> None:
    """Read what is left, and go on with it."""
    try:
        assert decoded_digest(location) == expected.digest
    except CacheError:
        assert "completed" not in state.lines
    if "created" in state.lines:
        read_manifest(open_object_store(location))
    committed = committed_blocks(location)
    assert {int(line.split()[1]) for line in state.lines if line.startswith("wrote")} <= set(
        committed
    )
    if committed:
        assert not verify(open_object_store(location), full=True).damaged_blocks
    lines: list[str] = []
    with watching(Count()):
        extract(location, lines.append)
    computed = [line for line in lines if line.startswith("computed")]
    assert computed == [f"computed {b}" for b in range(BLOCKS) if b not in committed]
    assert examine(location) == expected


@pytest.fixture(scope="module")
def calls(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of a run, and its journal; the process that made them has ended."""
    found: list[Call] = forks.value(record, tmp_path_factory.mktemp("recorded"))
    return found


def test_the_simulated_disk_is_like_the_real_one(
    forks: ForkServer, calls: list[Call], undisturbed: Whole, place: Path
) -> None:
    """Without a failure, what it holds is what a real disk holds."""
    disk = SimulatedDisk()
    for call in calls:
        disk.play(call)
    assert disk.visible() == disk.certain()
    materialise(disk.visible(), place / "disk")
    assert examine(place / "disk" / PLACE) == undisturbed


def test_power_fails(forks: ForkServer, calls: list[Call], undisturbed: Whole, place: Path) -> None:
    figures: Figures = forks.value(check_states, [], calls, place, undisturbed, 4)
    assert figures.moments > 500
    assert figures.checked > 80


@pytest.mark.slow
def test_power_fails_in_every_state(
    forks: ForkServer, calls: list[Call], undisturbed: Whole, place: Path
) -> None:
    figures: Figures = forks.value(check_states, [], calls, place, undisturbed, 1)
    assert figures.states > 2000
    assert figures.checked == figures.distinct > 300


def go_on_after_kill(forks: ForkServer, calls: list[Call], kill: int, root: Path) -> list[Call]:
    """Kill a run before a call and go on; return the calls of the run that went on."""
    materialise(play(calls[:kill])[0].visible(), root)
    found: list[Call] = forks.value(record, root)
    return found


@pytest.mark.slow
def test_power_fails_while_going_on_where_a_run_was_killed(
    forks: ForkServer, calls: list[Call], undisturbed: Whole, place: Path
) -> None:
    checked = 0
    for kill in range(25, len(calls), 50):
        again = go_on_after_kill(forks, calls, kill, place / f"{kill} killed")
        folder = place / str(kill)
        folder.mkdir()
        figures = forks.value(check_states, calls[:kill], again, folder, undisturbed, 1)
        checked += figures.checked
    assert checked > 2000


@pytest.mark.slow
def test_power_fails_after_going_on_where_a_run_was_killed(
    forks: ForkServer, calls: list[Call], place: Path
) -> None:
    """What the killed run had not flushed the next one relies on, so it has to flush that."""
    lost = []
    for kill in range(len(calls)):
        disk, _ = play(calls[:kill])
        again = go_on_after_kill(forks, calls, kill, place / "killed")
        for call in again:
            disk.play(call)
        materialise(disk.certain(), place / "left")
        try:
            decoded_digest(place / "left" / PLACE)
        except CacheError:
            if again:  # a run that finds the cache complete does nothing
                lost.append((kill, calls[kill - 1].name))
        shutil.rmtree(place / "killed")
        shutil.rmtree(place / "left")
    assert not lost
