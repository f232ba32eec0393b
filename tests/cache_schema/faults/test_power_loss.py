"""The power fails, at any call, on a disk that keeps only what it has to; then the run goes on.

Every state is made that such a disk may be left in: see `simulated_disk.py`. What `write_block` had
returned for must be there, whole; nothing may be read that was not written; and the next run makes
the same cache as if nothing had happened.
"""

import shutil
from pathlib import Path

import pytest

from mav.cache_schema.errors import CacheError
from tests.support.faults.cache_program import (
    Whole,
    decoded_digest,
    examine,
)
from tests.support.faults.fork_server import ForkServer
from tests.support.faults.power_loss import (
    PLACE,
    Figures,
    check_states,
    play,
    record,
)
from tests.support.faults.simulated_disk import (
    Call,
    SimulatedDisk,
    materialise,
)


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
