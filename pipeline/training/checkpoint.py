"""The state of a training run: weights, optimizer, and how far it is.

    checkpoints/newest.json                     the pointer, sealed
    checkpoints/step-00000080/state.json        how far the run is, and size and CRC32C of the rest
    checkpoints/step-00000080/*.safetensors     "head" and "optimizer"
    checkpoints/step-00000060/...               the one before

A checkpoint is written under a hidden name, forced to the disk and given its name; then the pointer
is replaced, and last what the pointer does not name is removed. Whatever moment a run is killed at,
the pointer names a whole checkpoint. Every byte is covered by a checksum: `state.json` and the
pointer by their seals, tensors by `state.json`.

While one is written there are three, so a run needs room for that many.

Order, dropout and learning rate are pure functions of the options and the step, so a checkpoint
needs no state of any random generator, and a resumed run follows the same trajectory.
"""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import safetensors
import safetensors.torch
from torch import Tensor

from mav.cache_schema.checksummed_json import UNSEALED, add_checksum, check_checksum
from mav.cache_schema.errors import HeadError
from mav.cache_schema.storage.local import sync_directory
from mav.pipeline.runtime.file_modes import give_usual_mode, new_folder

_log = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoints"
POINTER: Final = "newest.json"
_STATE: Final = "state.json"
_ENDING: Final = ".safetensors"
_AGAIN: Final = "-again"
"""Ends the name of a step that is saved again, until the former one is removed."""
_NAME: Final = re.compile(rf"step-(\d{{8,}})(?:{_AGAIN})?")
_BUILDING: Final = ".building-"
_PIECE_BYTES: Final = 8 << 20
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """How far a run is.

    Attributes:
        step: Optimizer steps taken.
        best_step: Step of the best head so far, or None before the first evaluation.
        best_loss: Its evaluation loss.
        trajectory: The options that decide every weight, how a step is shared out among them.
        cache_identity: `Manifest.identity` of the cache.
        complete: Whether the run has ended.
    """

    step: int
    best_step: int | None
    best_loss: float | None
    trajectory: dict[str, Any]
    cache_identity: str
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose every byte was checked.

    Attributes:
        folder: Its folder.
        state: How far the run was.
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
            found: dict[str, Tensor] = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise HeadError(f"{path}: cannot be read: {error}") from error
        return found


@dataclass(frozen=True, kw_only=True)
class _Pointer:
    """What is kept: the names of the newest checkpoint and of the one before it."""

    newest: str
    before: str | None


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: TrainState
) -> None:
    """Write a checkpoint whole or not at all, and remove all but it and the one before it.

    Args:
        folder: Folder of the run.
        tensors: Name -> named tensors, each name a file.
        state: How far the run is; a checkpoint of this step is replaced, later ones are removed.

    Raises:
        OSError: It cannot be written; the former state stays.
        HeadError: safetensors cannot hold these tensors; the former state stays.
    """
    root = folder / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    pointer = _read_pointer(root)
    before = _one_before(root, state.step, pointer)
    _make_room(root, pointer, before)
    plain = root / f"step-{state.step:08d}"
    # The former one of this step is needed until the pointer names the new one.
    again = plain.exists() and not (pointer and pointer.newest == f"{plain.name}{_AGAIN}")
    target = root / f"{plain.name}{_AGAIN}" if again else plain
    building = new_folder(root, _BUILDING)
    try:
        _write_files(building, tensors, state)
        shutil.rmtree(target, ignore_errors=True)  # a leftover, or the name would have been free
        building.replace(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_directory(root)
    for parent in root.absolute().parents:
        with contextlib.suppress(PermissionError):  # a folder of others, so not made here
            sync_directory(parent)
    now = _Pointer(newest=target.name, before=before)
    _write_pointer(root, now)
    _remove(root, [name for name in _names(root) if name not in (now.newest, now.before)])
    if again:
        # Where this fails the checkpoint just keeps its longer name.
        with contextlib.suppress(OSError):
            target.replace(plain)
            sync_directory(root)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that is not damaged, or None if the run has none.

    Args:
        folder: Folder of the run.

    Raises:
        HeadError: There are checkpoints, and all are damaged.
    """
    root = folder / CHECKPOINTS
    damaged: list[str] = []
    for name in _candidates(root, _read_pointer(root)):
        try:
            found = _read(root / name)
        except (OSError, ValueError) as error:
            damaged.append(f"{root / name}: damaged checkpoint: {error}")
            continue
        for line in damaged:
            _log.warning(f"{line}. Going back to step {found.state.step}.")
        return found
    if damaged:
        listed = "".join(f"\n  - {line}" for line in damaged)
        raise HeadError(
            f"{folder}: no checkpoint can be resumed from; remove {folder} to start over:{listed}"
        )
    return None


def _one_before(root: Path, step: int, pointer: _Pointer | None) -> str | None:
    """Return the newest sound checkpoint of an earlier step."""
    for name in _candidates(root, pointer):
        if _step(name) >= step:
            continue
        # Checked each time, in about a tenth of the time that writing one takes.
        with contextlib.suppress(OSError, ValueError):
            _read(root / name)
            return name
    return None


def _make_room(root: Path, pointer: _Pointer | None, before: str | None) -> None:
    """Remove what killed writers left, but nothing that a run may go back to."""
    _remove(root, [path.name for path in root.iterdir() if path.name.startswith(_BUILDING)])
    if pointer is None:
        return
    kept = (pointer.newest, pointer.before, before)
    _remove(
        root,
        [
            name
            for name in _names(root)
            if name not in kept
            and (
                _step(name) > _step(pointer.newest)
                or (before is not None and _step(name) < _step(before))
            )
        ],
    )


def _remove(root: Path, names: list[str]) -> None:
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)


def _candidates(root: Path, pointer: _Pointer | None) -> list[str]:
    """Names of checkpoints to try, best first; what is later than the pointer is left over."""
    names = _names(root)
    if pointer is not None:
        names = [name for name in names if _step(name) <= _step(pointer.newest)]
        names += [] if pointer.newest in names else [pointer.newest]  # gone, which is damage
    newest = None if pointer is None else pointer.newest
    return sorted(names, key=lambda name: (_step(name), name == newest, name), reverse=True)


def _names(root: Path) -> list[str]:
    """Names of all checkpoints, whether or not they are sound."""
    if not root.is_dir():
        return []
    return [path.name for path in root.iterdir() if _NAME.fullmatch(path.name)]


def _step(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found, name
    return int(found[1])


def _read_pointer(root: Path) -> _Pointer | None:
    """Return the pointer, or None if there is none or it is damaged."""
    try:
        document = check_checksum((root / POINTER).read_bytes())
        del document["seal"]
        pointer = _Pointer(**document)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    plain = pointer.newest.removesuffix(_AGAIN)
    if not (root / pointer.newest).exists() and (root / plain).exists():
        return _Pointer(newest=plain, before=pointer.before)
    return pointer


def _write_pointer(root: Path, pointer: _Pointer) -> None:
    partial = root / f".{POINTER}"
    _write_durably(partial, add_checksum({**asdict(pointer), "seal": UNSEALED}))
    partial.replace(root / POINTER)
    sync_directory(root)


def _write_files(
    building: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: TrainState
) -> None:
    files: dict[str, dict[str, int]] = {}
    for name, values in tensors.items():
        path = building / f"{name}{_ENDING}"
        _write_tensors(path, values)
        files[path.name] = _measure(path)
    document = {"state": asdict(state), "files": files, "seal": UNSEALED}
    _write_durably(building / _STATE, add_checksum(document))
    sync_directory(building)


def _write_tensors(path: Path, values: Mapping[str, Tensor]) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    try:
        safetensors.torch.save_file(plain, path)
    except safetensors.SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found:
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise HeadError(f"{path}: cannot be written: {error}") from error
    give_usual_mode(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path) -> Checkpoint:
    """Check a checkpoint, every byte of it.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is damaged.
    """
    if not folder.is_dir():
        raise ValueError("it is missing")
    try:
        document = check_checksum(_present(folder / _STATE).read_bytes())
        state, files = TrainState(**document["state"]), dict(document["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{_STATE}: {error}") from error
    for name, expected in files.items():
        path = _present(folder / name)
        size = path.stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size:,} bytes, expected {expected['size']:,}")
        if _measure(path) != expected:
            raise ValueError(f"the bytes of {name} are not those that were written")
    return Checkpoint(folder=folder, state=state)


def _present(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    return path


def _measure(path: Path) -> dict[str, int]:
    """Return a file's size and CRC32C, holding a piece of it at a time."""
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            checksum = google_crc32c.extend(checksum, piece)
    return {"size": size, "crc32c": checksum}
