"""Every state a power failure may leave a disk in, and the check that a run goes on from it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mav.cache_schema.errors import CacheError
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.support.faults.cache_program import (
    BLOCKS,
    Whole,
    committed_blocks,
    decoded_digest,
    examine,
    extract,
)
from tests.support.faults.simulated_disk import (
    Call,
    Recorder,
    SimulatedDisk,
    Tree,
    materialise,
)
from tests.support.faults.watched_os import Count, watching

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
