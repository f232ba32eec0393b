"""Checkpoints: whole or not at all, whatever a run dies of; damage is seen, and gone back from."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mav.cache_schema.errors import HeadError
from mav.pipeline.training.checkpoint import (
    Checkpoint,
    TrainState,
    newest_checkpoint,
    save_checkpoint,
)
from tests.support.dying_disk import LOST, Disk, Killed, on, quick_disk
from tests.support.logs import logged_messages

FILES: Final = ("head.safetensors", "optimizer.safetensors", "state.json")


def state(step: int, mark: float = 0.0) -> TrainState:
    """A state; the mark tells apart two of the same step."""
    return TrainState(
        step=step,
        best_step=None if step == 0 else step,
        best_loss=mark,
        trajectory={"beta": 0.1, "objective": "dpo", "warmup_steps": None},
        cache_identity="a cache",
        complete=False,
    )


def tensors(step: int, mark: float = 0.0) -> dict[str, dict[str, Tensor]]:
    values = torch.arange(600, dtype=torch.float32).reshape(20, 30) + step + mark
    return {
        "head": {"fusion.weight": values, "fusion.bias": values[0].clone()},
        "optimizer": {"fusion.weight.exp_avg": values / 7, "fusion.weight.step": values[0, 0] * 1},
    }


def save(folder: Path, step: int, mark: float = 0.0) -> None:
    save_checkpoint(folder, tensors(step, mark), state(step, mark))


def undamaged(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, of which no damage is logged."""
    with logged_messages() as logged:
        found = newest_checkpoint(folder)
    assert logged == []
    return found


def newest(folder: Path) -> tuple[int, float] | None:
    """Step and mark of the newest checkpoint, whose tensors are checked to be of the same save."""
    found = newest_checkpoint(folder)
    return None if found is None else saved_as(found)


def saved_as(found: Checkpoint) -> tuple[int, float]:
    mark = found.state.best_loss
    assert mark is not None
    assert found.state == state(found.state.step, mark)
    for name, expected in tensors(found.state.step, mark).items():
        values = found.tensors(name)
        assert values.keys() == expected.keys()
        for key in values:
            assert torch.equal(values[key], expected[key])
    return found.state.step, mark


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def place(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A run that saved three checkpoints."""
    for step in (40, 60, 80):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    assert undamaged(tmp_path / "run") is None
    save(tmp_path / "run", 20, 1.5)
    found = undamaged(tmp_path / "run")
    assert found is not None
    assert found.folder == place(tmp_path / "run", 20)
    assert saved_as(found) == (20, 1.5)
    assert {path.name for path in found.folder.iterdir()} == set(FILES)


def test_the_newest_two_are_kept(three: Path) -> None:
    assert newest(three) == (80, 0.0)
    assert names(three) == ["step-00000060", "step-00000080"]


def test_tensors_under_no_such_name(three: Path) -> None:
    found = undamaged(three)
    assert found is not None
    with pytest.raises(HeadError, match=r"scheduler\.safetensors: cannot be read"):
        found.tensors("scheduler")


DTYPES: Final = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)


@st.composite
def any_tensor(draw: st.DrawFn) -> Tensor:
    """A tensor of any bits, NaNs among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel()
    size = dtype.itemsize * count
    bits = draw(st.binary(min_size=size, max_size=size))
    if dtype == torch.bool:
        bits = bytes(byte & 1 for byte in bits)
    if not size:
        return torch.empty(shape, dtype=dtype)
    found = torch.frombuffer(bytearray(bits), dtype=dtype).reshape(shape)
    return found.mT if len(shape) > 1 and draw(st.booleans()) else found


def bits_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=100)
@given(
    values=st.dictionaries(
        st.sampled_from(("head", "optimizer")),
        st.dictionaries(st.text("ab.é", min_size=1, max_size=6), any_tensor(), max_size=4),
    )
)
def test_tensors_come_back_bit_by_bit(
    values: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with quick_disk():
        save_checkpoint(folder, values, state(1))
    found = undamaged(folder)
    assert found is not None
    for name, expected in values.items():
        read = found.tensors(name)
        assert read.keys() == expected.keys()
        for key, tensor in expected.items():
            assert (read[key].dtype, read[key].shape) == (tensor.dtype, tensor.shape)
            assert bits_of(read[key]) == bits_of(tensor)
    shutil.rmtree(folder)


def test_gradients_and_slices_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    whole = torch.randn(6, 4, requires_grad=True)
    values = {"head": {"left": whole[:3], "across": whole.T}}
    save_checkpoint(tmp_path, values, state(1))
    found = undamaged(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors("head")["across"], whole.detach().T)


# Damage


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


# Going back


def test_a_step_is_replaced_whole(three: Path) -> None:
    flip(place(three, 80) / FILES[0], 5000)
    (place(three, 80) / "stranger").touch()
    save(three, 80, 2.0)
    assert newest(three) == (80, 2.0)
    assert names(three) == ["step-00000060", "step-00000080"]
    assert {path.name for path in place(three, 80).iterdir()} == set(FILES)
    save(three, 80, 3.0)
    save(three, 100)
    assert (newest(three), names(three)[0]) == ((100, 0.0), "step-00000080")
    shutil.rmtree(place(three, 100))
    assert newest(three) == (80, 3.0)


def test_later_steps_are_gone_after_going_back(three: Path) -> None:
    flip(place(three, 80) / FILES[0], 5000)
    save(three, 70)
    assert names(three) == ["step-00000060", "step-00000070"]
    assert newest(three) == (70, 0.0)


def test_the_one_kept_before_is_a_sound_one(three: Path) -> None:
    """After going back from step 80 to 60, step 80 is none to go back to from 90."""
    flip(place(three, 80) / FILES[0], 5000)
    save(three, 90)
    assert names(three) == ["step-00000060", "step-00000090"]


def test_leftovers_are_removed(three: Path) -> None:
    leftover = three / "checkpoints" / ".building-abc"
    shutil.copytree(place(three, 60), leftover)
    shutil.copytree(place(three, 60), place(three, 20))
    assert newest(three) == (80, 0.0)
    save(three, 100)
    assert names(three) == ["step-00000080", "step-00000100"]


def test_leftovers_make_room_before_anything_is_written(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a disk with room for three checkpoints would stay full."""
    for leftover in (".building-abc", "step-00000020", "step-00000095"):
        shutil.copytree(place(three, 60), three / "checkpoints" / leftover)

    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save(three, 100)
    assert caught.value.errno == errno.ENOSPC
    assert names(three) == ["step-00000060", "step-00000080"]
    assert newest(three) == (80, 0.0)


def test_what_the_system_tells_safetensors(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own words: its file is made to be in a folder that is gone."""
    original = safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda values, _: original(values, three / "gone" / "x")
    )
    with pytest.raises(FileNotFoundError):
        save(three, 100)
    assert newest(three) == (80, 0.0)


def test_what_safetensors_cannot_hold(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise safetensors.SafetensorError("no such dtype")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(HeadError, match=r"head\.safetensors: cannot be written: no such dtype"):
        save(three, 100)
    assert newest(three) == (80, 0.0)


# Crashes


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


@pytest.mark.parametrize("end", ["before", "after", "all", "oldest", "none", "error"])
@pytest.mark.parametrize("before", BEFORE, ids=lambda before: before.__name__)
def test_a_writer_that_ends_anywhere(
    tmp_path: Path, before: Callable[[Path], None], end: str
) -> None:
    """Either state is there, whole; and the next checkpoint is saved as if nothing had happened.

    The writer is killed, fails, or loses power, and with that some renames and all that was not
    forced to the disk.
    """
    with quick_disk():
        before(tmp_path / "base")
    (tmp_path / "base").mkdir(exist_ok=True)
    old, new = newest(tmp_path / "base"), (80, 9.0)
    # A sound one of the same step makes way just before the new one takes its name.
    between = {(60, 0.0)} if old == (80, 0.0) else set()
    disk, states = Disk(), set[object]()
    shutil.copytree(tmp_path / "base", tmp_path / "whole")
    with on(disk):
        save(tmp_path / "whole", 80, 9.0)
    assert newest(tmp_path / "whole") == new
    assert len(disk.calls) > 10
    for at in range(len(disk.calls) + 1):
        folder, must = tmp_path / str(at), {old, new} | between
        shutil.copytree(tmp_path / "base", folder)
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
