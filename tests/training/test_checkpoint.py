"""Checkpoints: whole or not at all, whatever a run dies of; damage is seen, and gone back from."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    assert names(three) == ["newest.json", "step-00000060", "step-00000080"]


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


def test_a_missing_checkpoint_is_told(three: Path) -> None:
    shutil.rmtree(place(three, 80))
    check_gone_back(three, "it is missing")


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


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_without_its_pointer_the_highest_sound_step_is_used(
    three: Path, damage: Callable[[Path], None]
) -> None:
    damage(three / "checkpoints" / "newest.json")
    assert newest(three) == (80, 0.0)
    flip(place(three, 80) / FILES[1], 5000)
    check_gone_back(three, FILES[1])


def test_the_pointer_is_sealed(three: Path) -> None:
    """With a flipped bit it cannot name another checkpoint."""
    pointer = three / "checkpoints" / "newest.json"
    whole = pointer.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        flip(pointer, bit)
        assert newest(three) == (80, 0.0)
        pointer.write_bytes(whole)


def test_a_run_can_go_on_without_its_pointer(three: Path) -> None:
    (three / "checkpoints" / "newest.json").unlink()
    save(three, 100)
    assert newest(three) == (100, 0.0)
    assert names(three) == ["newest.json", "step-00000080", "step-00000100"]


# Going back


def test_a_step_is_replaced_whole(three: Path) -> None:
    flip(place(three, 80) / FILES[0], 5000)
    (place(three, 80) / "stranger").touch()
    save(three, 80, 2.0)
    assert newest(three) == (80, 2.0)
    assert names(three) == ["newest.json", "step-00000060", "step-00000080"]
    assert {path.name for path in place(three, 80).iterdir()} == set(FILES)
    save(three, 80, 3.0)
    save(three, 100)
    assert (newest(three), names(three)[1]) == ((100, 0.0), "step-00000080")
    shutil.rmtree(place(three, 100))
    assert newest(three) == (80, 3.0)


def test_later_steps_are_gone_after_going_back(three: Path) -> None:
    flip(place(three, 80) / FILES[0], 5000)
    save(three, 70)
    assert names(three) == ["newest.json", "step-00000060", "step-00000070"]
    (three / "checkpoints" / "newest.json").unlink()
    assert newest(three) == (70, 0.0)


def test_a_later_step_that_could_not_be_removed_is_not_gone_back_to(
    three: Path, tmp_path: Path
) -> None:
    shutil.copytree(place(three, 80), tmp_path / "kept")
    save(three, 70)
    (tmp_path / "kept").rename(place(three, 80))
    assert newest(three) == (70, 0.0)
    flip(place(three, 70) / FILES[0], 5000)
    assert newest(three) == (60, 0.0)
    save(three, 65)
    assert names(three) == ["newest.json", "step-00000060", "step-00000065"]


def test_the_one_kept_before_is_a_sound_one(three: Path) -> None:
    """After going back from step 80 to 60, step 80 is none to go back to from 90."""
    flip(place(three, 80) / FILES[0], 5000)
    save(three, 90)
    assert names(three) == ["newest.json", "step-00000060", "step-00000090"]


def test_leftovers_are_removed(three: Path) -> None:
    leftover = three / "checkpoints" / ".building-abc"
    shutil.copytree(place(three, 60), leftover)
    shutil.copytree(place(three, 60), place(three, 20))
    assert newest(three) == (80, 0.0)
    save(three, 100)
    assert names(three) == ["newest.json", "step-00000080", "step-00000100"]


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
    assert names(three) == ["newest.json", "step-00000060", "step-00000080"]
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


class Killed(BaseException):
    """Ends a writer where it stands."""


OPERATIONS: Final = ("mkdir", "chmod", "replace", "fsync", "unlink", "rmdir")


@dataclass(frozen=True)
class Renamed:
    """A rename that its folder was not yet flushed after."""

    source: Path
    target: Path
    replaced: bytes | None


class Disk:
    """Writes down the operations of a writer, and lets one of them end it or fail.

    Args:
        at: Number of the operation, from 0; none if negative.
        end: `before` or `after` it the writer is killed, or it fails with an `error`.
    """

    def __init__(self, at: int = -1, end: str = "") -> None:
        self.calls: list[str] = []
        self.dead = False
        self._at, self._end = at, end
        self._flushed: dict[int, int] = {}
        self._renamed: list[Renamed] = []

    def call(self, name: str, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.dead:
            raise Killed
        number = len(self.calls)
        self.calls.append(name)
        if number == self._at and self._end == "before":
            self._die()
        if number == self._at and self._end == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        if name == "replace":
            source, target = Path(args[0]), Path(args[1])
            replaced = target.read_bytes() if target.is_file() else None
            self._renamed.append(Renamed(source, target, replaced))
        try:
            return self._flush(args[0]) if name == "fsync" else original(*args, **options)
        finally:
            if number == self._at and self._end == "after":
                self._die()

    def _die(self) -> None:
        self.dead = True
        raise Killed

    def _flush(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._flushed[status.st_ino] = status.st_size
        if stat.S_ISDIR(status.st_mode):
            self._renamed = [
                r for r in self._renamed if r.target.parent.stat().st_ino != status.st_ino
            ]

    def lose_power(self, root: Path, whole: set[int], lost: slice) -> None:
        """Take back what was not flushed: contents of files, and perhaps renames.

        Args:
            root: What is on the disk.
            whole: Numbers of the files that were on it before.
            lost: Which of the renames that were not flushed are taken back.
        """
        for renamed in reversed(self._renamed[lost]):
            if renamed.target.exists() and not renamed.source.exists():
                renamed.target.rename(renamed.source)
                if renamed.replaced is not None:
                    renamed.target.write_bytes(renamed.replaced)
                    whole.add(renamed.target.stat().st_ino)
        for path in root.rglob("*"):
            known = path.stat()
            if path.is_file() and known.st_ino not in whole:
                flushed = self._flushed.get(known.st_ino)
                if flushed != known.st_size:
                    os.truncate(path, known.st_size // 2)


@contextlib.contextmanager
def on(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            original = getattr(os, name)

            def call(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
                return disk.call(name, original, *args, **options)

            patch.setattr(os, name, call)
        yield


def quick_disk() -> contextlib.AbstractContextManager[None]:
    """Nothing is forced to the disk."""
    return on(Disk())


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


def without_pointer(folder: Path) -> None:
    third(folder)
    (folder / "checkpoints" / "newest.json").unlink()


def again_not_renamed(folder: Path) -> None:
    """The state after a writer was killed that saved a step for the second time."""
    same_step(folder)
    shutil.copytree(folder, folder.with_name("copy"))
    disk = Disk()
    with on(disk):
        save(folder.with_name("copy"), 80, 1.0)
    last = max(number for number, name in enumerate(disk.calls) if name == "replace")
    with on(Disk(last, "before")), pytest.raises(Killed):
        save(folder, 80, 1.0)
    assert "step-00000080-again" in names(folder)


LOST: Final = {"all": slice(None), "oldest": slice(1), "none": slice(0)}
"""Which renames a power failure takes back."""

BEFORE: Final = (
    *(first, second, third, same_step, later_damaged, same_damaged, both_kept_damaged),
    *(with_leftovers, without_pointer, again_not_renamed),
)


@pytest.mark.parametrize("end", ["before", "after", "all", "oldest", "none", "error"])
@pytest.mark.parametrize("before", BEFORE, ids=lambda before: before.__name__)
def test_a_writer_that_ends_anywhere(
    tmp_path: Path, before: Callable[[Path], None], end: str
) -> None:
    """Either state is there, whole; and the next checkpoint is saved as if nothing had been.

    The writer is killed, fails, or loses power, and with that some renames and all that was not
    forced to the disk.
    """
    with quick_disk():
        before(tmp_path / "base")
    (tmp_path / "base").mkdir(exist_ok=True)
    old, new = newest(tmp_path / "base"), (80, 9.0)
    disk, states = Disk(), set[object]()
    shutil.copytree(tmp_path / "base", tmp_path / "whole")
    with on(disk):
        save(tmp_path / "whole", 80, 9.0)
    assert newest(tmp_path / "whole") == new
    assert len(disk.calls) > 10
    for at in range(len(disk.calls) + 1):
        folder, must = tmp_path / str(at), (old, new)
        shutil.copytree(tmp_path / "base", folder)
        whole = {path.stat().st_ino for path in folder.rglob("*")}
        broken = Disk(at, end if end in ("after", "error") else "before")
        with on(broken):
            try:
                save(folder, 80, 9.0)
            except OSError as error:
                assert end == "error"
                assert error.errno == errno.ENOSPC
                # It was given up before the pointer was replaced, or in flushing that.
                assert not [name for name in names_if_any(folder) if name.startswith(".building")]
            except Killed:
                assert end != "error"
            else:
                assert end == "error" or at == len(disk.calls)
                must = (new, new)
        if end in LOST:
            broken.lose_power(folder, whole, LOST[end])
        found = newest(folder)
        assert found in must
        states.add(found)
        with quick_disk():
            save(folder, 100, 1.0)
        assert newest(folder) == (100, 1.0)
        kept = [name for name in names(folder) if not name.startswith(".newest")]
        assert len(kept) == (2 if found is None else 3)
        (folder / "checkpoints" / "newest.json").unlink()
        flip(place(folder, 100) / FILES[0], 5000)
        if found is not None:
            assert newest(folder) == found
        shutil.rmtree(folder)
    assert states == {old, new}


def names_if_any(folder: Path) -> list[str]:
    return names(folder) if (folder / "checkpoints").is_dir() else []


def test_the_pointer_is_json_that_people_can_read(three: Path) -> None:
    document = json.loads((three / "checkpoints" / "newest.json").read_text())
    assert (document["newest"], document["before"]) == ("step-00000080", "step-00000060")
