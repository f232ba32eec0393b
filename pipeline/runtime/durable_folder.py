"""Writing a folder of JSON and safetensors files whole or not at all."""

import ctypes
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from mav.cache_schema.errors import HeadError
from mav.cache_schema.storage.local import sync_directory
from mav.pipeline.runtime.file_modes import give_usual_mode, new_folder

# From Linux's fcntl.h and fs.h.
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def atomic_write_directory(
    folder: Path, documents: dict[str, dict[str, Any]], tensors: dict[str, dict[str, Tensor]]
) -> None:
    """Write files under a new folder, make them durable, then put it in place of the old one.

    Args:
        folder: The folder.
        documents: File name -> what it holds, for JSON files.
        tensors: File name -> named tensors on the CPU, for safetensors files.

    Raises:
        HeadError: The tensors cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = new_folder(folder.parent, f".{folder.name}.")
    try:
        for name, values in tensors.items():
            safetensors.torch.save_file(values, building / name)
            give_usual_mode(building / name)
        for name, value in documents.items():
            (building / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
        for path in building.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(building)
        _put_in_place(building, folder)
        sync_directory(folder.parent)
    except safetensors.SafetensorError as error:
        raise HeadError(
            f"{folder}: cannot be written: {error}. What was there before is kept."
        ) from error
    finally:
        # The new folder where writing failed; the old one where it did not.
        shutil.rmtree(building, ignore_errors=True)


def _put_in_place(new: Path, folder: Path) -> None:
    """Swap two folders at once, or give the new one its name where there is no old one."""
    if not folder.exists():
        new.replace(folder)
    elif not _exchange(new, folder):
        # Where the system cannot swap, the old folder steps aside for a moment.
        aside = new.with_name(f"{new.name}.old")
        folder.replace(aside)
        try:
            new.replace(folder)
        except BaseException:
            aside.replace(folder)
            raise
        aside.replace(new)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if not sys.platform.startswith("linux") or renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
