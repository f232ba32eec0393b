"""Checkpoints whose tensors tell which save they are of."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from mav.pipeline.training.checkpoint import (
    Checkpoint,
    TrainState,
    newest_checkpoint,
    save_checkpoint,
)
from tests.support.running.logs import logged_messages

FILES: Final = ("head.safetensors", "optimizer.safetensors", "state.json")


def state(step: int, mark: float = 0.0) -> TrainState:
    """A state; the mark tells apart two of the same step."""
    return TrainState(
        step=step,
        best_step=None if step == 0 else step,
        best_value=mark,
        trajectory={"beta": 0.1, "objective": "dpo", "warmup_steps": None},
        cache_identity="a cache",
        complete=False,
    )


def tensors(step: int, mark: float = 0.0) -> dict[str, dict[str, Tensor]]:
    """Tensors of a save; those of any two differ."""
    values = torch.arange(600, dtype=torch.float32).reshape(20, 30) + step + mark
    return {
        "head": {"fusion.weight": values, "fusion.bias": values[0].clone()},
        "optimizer": {"fusion.weight.exp_avg": values / 7, "fusion.weight.step": values[0, 0] * 1},
    }


def save(folder: Path, step: int, mark: float = 0.0) -> None:
    """Save a checkpoint."""
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
    """Step and mark of a checkpoint, whose tensors are checked to be of the same save."""
    mark = found.state.best_value
    assert mark is not None
    assert found.state == state(found.state.step, mark)
    for name, expected in tensors(found.state.step, mark).items():
        values = found.tensors(name)
        assert values.keys() == expected.keys()
        for key in values:
            assert torch.equal(values[key], expected[key])
    return found.state.step, mark


def names(folder: Path) -> list[str]:
    """Names of all that is beside the checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def place(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return folder / "checkpoints" / f"step-{step:08d}"


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
