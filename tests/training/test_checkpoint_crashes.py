"""A checkpoint is whole or absent, at whatever point its writer dies."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.faults.dying_disk import LOST, Disk, Killed, on, quick_disk
from tests.support.models.checkpoints import (
    FILES,
    flip,
    names,
    newest,
    place,
    save,
)
from tests.support.sweeps import sweep


def first(folder: Path) -> None:
    """A new run."""


def second(folder: Path) -> None:
    save(folder, 60)


def third(folder: Path) -> None:
    save(folder, 40)
    save(folder, 60)


def same_step(folder: Path) -> None:
    save(folder, 60)
    save(folder, 80)


def later_damaged(folder: Path) -> None:
    save(folder, 60)
    save(folder, 100)
    flip(place(folder, 100) / FILES[0], 5000)


def same_damaged(folder: Path) -> None:
    same_step(folder)
    flip(place(folder, 80) / FILES[0], 5000)


def both_kept_damaged(folder: Path) -> None:
    """A third one, left over by chance, is all there is to go back to."""
    save(folder, 40)
    save(folder, 60)
    shutil.copytree(place(folder, 40), folder / "kept")
    save(folder, 80)
    (folder / "kept").rename(place(folder, 40))
    for step in (60, 80):
        flip(place(folder, step) / FILES[0], 5000)


def with_leftovers(folder: Path) -> None:
    third(folder)
    for name in (".building-abc", "step-00000020", "step-00000080"):
        shutil.copytree(place(folder, 40), folder / "checkpoints" / name)


def of_an_earlier_program(folder: Path) -> None:
    """It had a pointer, and another name for a step that was saved twice."""
    third(folder)
    root = folder / "checkpoints"
    (root / "newest.json").write_text('{"newest": "step-00000080-again"}')
    shutil.copytree(place(folder, 60), root / "step-00000080-again")
    shutil.copytree(place(folder, 60), root / ".building-abc")


BEFORE: Final = (
    *(first, second, third, same_step, later_damaged, same_damaged, both_kept_damaged),
    *(with_leftovers, of_an_earlier_program),
)


@sweep({"before": BEFORE, "end": ["before", "after", "all", "oldest", "none", "error"]}, meet=1)
def test_a_writer_that_ends_anywhere(
    memory_path: Path, before: Callable[[Path], None], end: str
) -> None:
    """Either state is there, whole; and the next checkpoint is saved as if nothing had happened.

    The writer is killed, fails, or loses power, and with that some renames and all that was not
    forced to the disk.
    """
    with quick_disk():
        before(memory_path / "base")
    (memory_path / "base").mkdir(exist_ok=True)
    old, new = newest(memory_path / "base"), (80, 9.0)
    # A sound one of the same step makes way just before the new one takes its name.
    between = {(60, 0.0)} if old == (80, 0.0) else set()
    disk, states = Disk(), set[object]()
    shutil.copytree(memory_path / "base", memory_path / "whole")
    with on(disk):
        save(memory_path / "whole", 80, 9.0)
    assert newest(memory_path / "whole") == new
    assert len(disk.calls) > 10
    for at in range(len(disk.calls) + 1):
        folder, must = memory_path / str(at), {old, new} | between
        shutil.copytree(memory_path / "base", folder)
        whole = {path.stat().st_ino for path in folder.rglob("*")}
        broken = Disk(at, end if end in ("after", "error") else "before")
        with on(broken):
            try:
                save(folder, 80, 9.0)
            except OSError as error:
                assert end == "error"
                assert error.errno == errno.ENOSPC
                # It was given up before it was renamed, or in flushing the rename.
                assert not [name for name in names_if_any(folder) if name.endswith(".partial")]
            except Killed:
                assert end != "error"
            else:
                assert end == "error" or at == len(disk.calls)
                must = {new}
        if end in LOST:
            broken.lose_power(folder, whole, LOST[end])
        found = newest(folder)
        assert found in must
        states.add(found)
        with quick_disk():
            save(folder, 100, 1.0)
        assert newest(folder) == (100, 1.0)
        kept = [name for name in names(folder) if name != "newest.json"]
        assert len(kept) == (1 if found is None else 2)
        flip(place(folder, 100) / FILES[0], 5000)
        if found is not None:
            assert newest(folder) == found
        shutil.rmtree(folder)
    assert states - between == {old, new}


def names_if_any(folder: Path) -> list[str]:
    return names(folder) if (folder / "checkpoints").is_dir() else []
