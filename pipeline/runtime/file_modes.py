"""Gives new folders and files the modes that the umask implies."""

import os
import stat
import uuid
from pathlib import Path


def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder of a name that is not taken; `tempfile.mkdtemp` shuts out everybody else.

    Args:
        parent: Where, a folder that is there.
        prefix: What its name begins with.
    """
    folder = parent / f"{prefix}{uuid.uuid4().hex}"
    folder.mkdir()
    return folder


def give_usual_mode(path: Path) -> None:
    """Give a file the mode that a new one gets in its folder; safetensors writes 0600.

    The umask cannot be asked for without changing it for all threads, and a folder may have a
    default access list in its place, so a new file is made and looked at.
    """
    trial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        path.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode))
    finally:
        os.close(descriptor)
        trial.unlink()
