"""The state of a training run: weights, optimizer, and how far it is.

Order, dropout and learning rate are pure functions of the options and the step, so a checkpoint
needs no state of any random generator, and a resumed run follows the same trajectory.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from cache_schema.errors import HeadError
from pipeline.head import AlignmentHead
from pipeline.whole_folder import write_folder

CHECKPOINT: Final = "checkpoint"
_HEAD: Final = "head.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How far a run is.

    Attributes:
        step: Optimizer steps taken.
        best_step: Step of the best head so far, or None before the first evaluation.
        best_loss: Its evaluation loss.
        trajectory: The options that decide every weight.
        world_size: Processes, which decide what a step holds.
        cache_identity: `Manifest.identity` of the cache.
        complete: Whether the run has ended.
    """

    step: int
    best_step: int | None
    best_loss: float | None
    trajectory: dict[str, Any]
    world_size: int
    cache_identity: str
    complete: bool


def save_checkpoint(
    folder: Path, head: AlignmentHead, optimizer: torch.optim.Optimizer, state: TrainState
) -> None:
    """Write the checkpoint, whole or not at all, in place of the one before."""
    names = _names_by_index(head)
    moments: dict[str, Tensor] = {
        f"{names[index]}.{key}": torch.as_tensor(value).cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    weights = {name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    write_folder(
        folder / CHECKPOINT, {_STATE: asdict(state)}, {_HEAD: weights, _OPTIMIZER: moments}
    )


def read_state(folder: Path) -> TrainState | None:
    """Return how far the run in a folder is, or None if it has no checkpoint.

    Raises:
        HeadError: The checkpoint is damaged.
    """
    path = folder / CHECKPOINT / _STATE
    if not path.is_file():
        return None
    try:
        return TrainState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise HeadError(
            f"{path}: damaged checkpoint ({error}). Remove {path.parent} to start anew."
        ) from error


def load_checkpoint(folder: Path, head: AlignmentHead, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state into a head and its optimizer.

    Raises:
        HeadError: The checkpoint is damaged.
    """
    checkpoint = folder / CHECKPOINT
    try:
        head.load_state_dict(safetensors.torch.load_file(checkpoint / _HEAD))
        moments = safetensors.torch.load_file(checkpoint / _OPTIMIZER)
        stored = optimizer.state_dict()
        stored["state"] = {
            index: {
                key.removeprefix(f"{name}."): value
                for key, value in moments.items()
                if key.rpartition(".")[0] == name
            }
            for index, name in enumerate(_names_by_index(head))
        }
        optimizer.load_state_dict(stored)
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise HeadError(
            f"{checkpoint}: damaged checkpoint ({error}). Remove it to start anew."
        ) from error


def _names_by_index(head: AlignmentHead) -> list[str]:
    """An optimizer numbers parameters in the order it was given them."""
    return [name for name, _ in head.named_parameters()]
