"""Checkpoints: what is saved is read, and the newest two are kept."""

import errno
import shutil
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
    save_checkpoint,
)
from tests.support.faults.dying_disk import quick_disk
from tests.support.models.checkpoints import (
    FILES,
    flip,
    names,
    newest,
    place,
    save,
    saved_as,
    state,
    undamaged,
)
from tests.support.profiles import examples


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


@settings(max_examples=examples(2))
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
