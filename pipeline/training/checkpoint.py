"""The state of a training run: weights, optimizer, and the step it has reached.

    checkpoints/step-00000080/state.json        the state, and size and CRC32C of the other files
    checkpoints/step-00000080/*.safetensors     "head", "optimizer", "average" where there is one
    checkpoints/step-00000060/...               the checkpoint before

A checkpoint gets its name once all of it is on the disk, and every byte is covered by a checksum:
`state.json` by its own, tensors by `state.json`. So the newest sound folder is the newest
checkpoint, whenever the run was killed. The newest two are kept; while one is written there are
three.

Order, dropout and learning rate are pure functions of the options and the step, so a checkpoint
needs no state of a random generator, and a resumed run follows the same trajectory.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum, check_checksum
from mav.cache_schema.errors import HeadError
from mav.pipeline.ops.tensor_files import write_tensors
from mav.pipeline.runtime.durable_files import measure, new_folder, sync_parents

_log = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoints"
_STATE: Final = "state.json"
_ENDING: Final = ".safetensors"
_NAME: Final = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a run.

    Attributes:
        step: Optimizer steps taken.
        best_step: Step of the best head so far, or None before the first evaluation.
        best_value: Its value by the criterion of the run.
        trajectory: The options that decide every weight.
        cache_identity: `Manifest.identity` of the cache.
        complete: Whether the run has ended.
    """

    step: int
    best_step: int | None
    best_value: float | None
    trajectory: dict[str, Any]
    cache_identity: str
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose every byte was checked.

    Attributes:
        folder: Its folder.
        state: The state of the run.
    """

    folder: Path
    state: TrainState

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors saved under a name, onto the CPU.

        Raises:
            HeadError: They cannot be read, though they could when they were checked.
        """
        path = self.folder / f"{name}{_ENDING}"
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise HeadError(f"{path}: cannot be read: {error}") from error
        return tensors


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: TrainState
) -> None:
    """Write a checkpoint whole or not at all, and keep only it and the one before it.

    A run resumes from its newest intact checkpoint, so those of this step and later ones are
    damaged. They are removed: one of this step just before the new one takes its name, later ones
    just after.

    Args:
        folder: Folder of the run.
        tensors: Name -> named tensors, each name a file.
        state: The state of the run.

    Raises:
        OSError: It cannot be written; the checkpoint that the run would go on from stays.
        HeadError: safetensors cannot hold these tensors; likewise.
    """
    root = folder / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    # Checked each time, which takes about a tenth of the time that writing one does.
    paths = _newest_first(root)
    newest = before = next(filter(_is_sound, paths), None)
    if newest is not None and _step(newest) >= state.step:
        before = next(filter(_is_sound, (p for p in paths if _step(p) < state.step)), None)
    older = [path for path in paths if before is not None and _step(path) < _step(before)]
    target = root / f"step-{state.step:08d}"
    # Room is made before anything is written, or a full disk would stay full.
    _keep_only(root, newest, before, *older[:1])
    with new_folder(target) as partial:
        _write_files(partial, tensors, state)
    sync_parents(root)
    _keep_only(root, target, before)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is not damaged, or None if the run has none.

    Args:
        folder: Folder of the run.

    Raises:
        HeadError: There are checkpoints, and all are damaged.
    """
    damaged: list[str] = []
    for path in _newest_first(folder / CHECKPOINTS):
        try:
            checkpoint = _read(path)
        except (OSError, ValueError) as error:
            damaged.append(f"{path}: damaged checkpoint: {error}")
            continue
        for line in damaged:
            _log.warning(f"{line}. Going back to step {checkpoint.state.step}.")
        return checkpoint
    if damaged:
        listed = "".join(f"\n  - {line}" for line in damaged)
        raise HeadError(
            f"{folder}: no checkpoint can be resumed from; remove {folder} to start over:{listed}"
        )
    return None


def _newest_first(root: Path) -> list[Path]:
    """Return the folders named as checkpoints, whether or not they are sound."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _NAME.fullmatch(p.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def _keep_only(root: Path, *kept: Path | None) -> None:
    """Remove all folders of a run's checkpoints but those that are kept."""
    for path in root.iterdir():
        if path not in kept and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _write_files(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: TrainState
) -> None:
    files: dict[str, dict[str, int]] = {}
    for name, values in tensors.items():
        path = folder / f"{name}{_ENDING}"
        write_tensors(path, values)
        files[path.name] = measure(path)
    document = {"state": asdict(state), "files": files, "seal": BLANK_CHECKSUM}
    (folder / _STATE).write_bytes(add_checksum(document))


def _is_sound(folder: Path) -> bool:
    try:
        _read(folder)
    except (OSError, ValueError):
        return False
    return True


def _read(folder: Path) -> Checkpoint:
    """Check a checkpoint, every byte of it.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is damaged.
    """
    try:
        document = check_checksum(_present(folder / _STATE).read_bytes())
        state, files = _state(document["state"]), dict(document["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{_STATE}: {error}") from error
    if state.step != _step(folder):
        raise ValueError(f"{_STATE} is that of step {state.step}")
    for name, expected in files.items():
        path = _present(folder / name)
        size = path.stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size:,} bytes, expected {expected['size']:,}")
        if measure(path) != expected:
            raise ValueError(f"the bytes of {name} are not those that were written")
    return Checkpoint(folder=folder, state=state)


def _state(fields: dict[str, Any]) -> TrainState:
    """Return a state; before there were other criteria, the best value was called a loss."""
    renamed = {"best_loss": "best_value"}
    return TrainState(**{renamed.get(name, name): value for name, value in fields.items()})


def _present(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    return path
