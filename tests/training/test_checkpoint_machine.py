"""Any sequence of saves, crashes and damage leaves the newest sound checkpoint to go on from."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mav.cache_schema.errors import HeadError
from tests.support.faults.dying_disk import Disk, Killed, on, quick_disk
from tests.support.models.checkpoints import FILES, flip, newest, place, save
from tests.support.profiles import examples

STRIDES = st.integers(1, 3)


class Rotation(RuleBasedStateMachine):
    """A run that goes on from its newest sound checkpoint, whatever happens to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.sound: dict[int, float] = {}
        """Step -> mark of the checkpoints that are whole."""
        self.damaged: set[int] = set()
        self.saves = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def next_save(self, stride: int) -> tuple[int, float]:
        """The step and mark of the save that a run would make next."""
        self.saves += 1
        return max(self.sound, default=0) + stride, float(self.saves)

    def look(self, step: int, mark: float) -> None:
        """Take note of what a save has left, without judging it."""
        root = self.folder / "checkpoints"
        kept = {path.name for path in root.iterdir()} if root.exists() else set()
        named = {place(self.folder, other).name: other for other in [*self.sound, *self.damaged]}
        there = {other for name, other in named.items() if name in kept}
        replaced = step in self.damaged and newest_step(self.folder) == step
        if replaced or (step not in self.damaged and place(self.folder, step).name in kept):
            self.sound[step] = mark
            there |= {step}
            self.damaged -= {step}
        # One that was being removed may have lost some of its files.
        halved = {
            other
            for other in self.sound
            if other in there
            and not all((place(self.folder, other) / name).exists() for name in FILES)
        }
        self.sound = {other: kept for other, kept in self.sound.items() if other in there - halved}
        self.damaged = (self.damaged & there) | halved

    @precondition(lambda self: self.sound or not self.damaged)
    @rule(stride=STRIDES)
    def save(self, stride: int) -> None:
        before = max(self.sound, default=None)
        step, mark = self.next_save(stride)
        with quick_disk():
            save(self.folder, step, mark)
        self.sound = {kept: self.sound[kept] for kept in self.sound if kept == before}
        self.sound[step] = mark
        self.damaged = set()
        kept = {path.name for path in (self.folder / "checkpoints").iterdir()}
        assert kept == {place(self.folder, kept_step).name for kept_step in self.sound}

    @precondition(lambda self: self.sound or not self.damaged)
    @rule(stride=STRIDES, at=st.integers(0, 40), end=st.sampled_from(["before", "after", "error"]))
    def crash(self, stride: int, at: int, end: str) -> None:
        before = max(self.sound, default=None)
        step, mark = self.next_save(stride)
        with on(Disk(at, end)), contextlib.suppress(Killed, OSError):
            save(self.folder, step, mark)
        self.look(step, mark)
        assert before is None or before in self.sound

    @precondition(lambda self: self.sound)
    @rule(name=st.sampled_from(FILES), bit=st.integers(0, 2000))
    def damage_the_newest(self, name: str, bit: int) -> None:
        step = max(self.sound)
        flip(place(self.folder, step) / name, bit)
        del self.sound[step]
        self.damaged.add(step)

    @precondition(lambda self: self.damaged and not self.sound)
    @rule()
    def start_over(self) -> None:
        shutil.rmtree(self.folder / "checkpoints")
        self.damaged = set()

    @invariant()
    def the_newest_sound_one_is_found(self) -> None:
        if self.damaged and not self.sound:
            with pytest.raises(HeadError, match="to start over"):
                newest(self.folder)
        else:
            step = max(self.sound, default=None)
            assert newest(self.folder) == (None if step is None else (step, self.sound[step]))


def newest_step(folder: Path) -> int | None:
    """The step of the newest sound checkpoint, if there is one."""
    try:
        found = newest(folder)
    except HeadError:
        return None
    return None if found is None else found[0]


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=examples(0.6), stateful_step_count=15)
