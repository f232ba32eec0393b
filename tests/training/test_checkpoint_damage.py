"""Damage to a checkpoint is seen, and the one before is gone back to."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from mav.cache_schema.errors import HeadError
from mav.pipeline.training.checkpoint import (
    newest_checkpoint,
)
from tests.support.models.checkpoints import FILES, flip, newest, place, save, saved_as
from tests.support.running.logs import logged_messages


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: Final[tuple[Callable[[Path], None], ...]] = (
    *(cut, lengthen, empty, zero, make_a_folder, Path.unlink),
)


def check_gone_back(folder: Path, name: str) -> None:
    with logged_messages() as logged:
        found = newest_checkpoint(folder)
    assert found is not None
    assert saved_as(found) == (60, 0.0)
    (line,) = logged
    assert line.startswith(f"{place(folder, 80)}: damaged checkpoint: ")
    assert name in line
    assert line.endswith("Going back to step 60.")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_seen_and_gone_back_from(
    three: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(place(three, 80) / name)
    check_gone_back(three, name)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_seen(three: Path, name: str) -> None:
    """All bits of the first bytes, and some of all others."""
    path = place(three, 80) / name
    whole = path.read_bytes()
    for bit in [*range(128), *range(128, 8 * len(whole), 131), 8 * len(whole) - 1]:
        flip(path, bit)
        check_gone_back(three, name)
        path.write_bytes(whole)
    assert newest(three) == (80, 0.0)


def test_no_sound_checkpoint(three: Path, messages: list[str]) -> None:
    flip(place(three, 80) / FILES[0], 5000)
    flip(place(three, 60) / FILES[2], 100)
    with pytest.raises(HeadError, match=rf"remove {three} to start over") as caught:
        newest_checkpoint(three)
    assert messages == []
    lines = str(caught.value).splitlines()[1:]
    assert [str(place(three, step)) in line for step, line in zip((80, 60), lines, strict=True)]


def test_every_damaged_checkpoint_passed_over_is_told(
    three: Path, tmp_path: Path, messages: list[str]
) -> None:
    """A third one is there where a run was killed before it removed it."""
    shutil.copytree(place(three, 60), tmp_path / "kept")
    save(three, 100)
    (tmp_path / "kept").rename(place(three, 60))
    flip(place(three, 100) / FILES[0], 5000)
    flip(place(three, 80) / FILES[1], 5000)
    found = newest_checkpoint(three)
    assert found is not None
    assert saved_as(found) == (60, 0.0)
    assert [line.split(":")[0] for line in messages] == [str(place(three, s)) for s in (100, 80)]
    assert all(line.endswith("Going back to step 60.") for line in messages)


def test_a_checkpoint_under_the_name_of_another_step_is_damage(three: Path) -> None:
    place(three, 80).rename(place(three, 90))
    with logged_messages() as logged:
        assert newest(three) == (60, 0.0)
    assert "state.json is that of step 80" in logged[0]
