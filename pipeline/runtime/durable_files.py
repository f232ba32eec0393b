"""Files and folders that are whole or absent after a crash or a power failure.

Everything is written under a hidden name beside its place, forced to the disk and renamed; then
the folder is forced to the disk, since a rename lasts only from then on.
"""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import google_crc32c

_PARTIAL: Final = ".partial"
_PIECE_BYTES: Final = 8 << 20


def sync_file(path: Path) -> None:
    """Force a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(path: Path) -> None:
    """Force to the disk the entries of all folders above a path, any of which may be new."""
    for parent in path.absolute().parents:
        with contextlib.suppress(PermissionError):  # belongs to others, so it was not made here
            sync_file(parent)


def measure(path: Path, each: Callable[[bytes], object] = lambda _: None) -> dict[str, int]:
    """Return a file's `size` in bytes and its `crc32c`, reading a piece of it at a time.

    Args:
        path: The file.
        each: Is given each piece as well, to make another digest in the same pass.
    """
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            checksum = google_crc32c.extend(checksum, piece)
            each(piece)
    return {"size": size, "crc32c": checksum}


def partial_name(path: Path) -> Path:
    """Return a new hidden name beside a file, or beside the file that a link points to."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}{_PARTIAL}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file under; on leaving, it replaces the file at `path`.

    Args:
        path: The file's place. If it is a link, the file it points to is replaced.

    Raises:
        OSError: It cannot be written; what was there before stays.
    """
    partial = partial_name(path)
    try:
        yield partial
        sync_file(partial)
        partial.replace(os.path.realpath(path))
    except OSError as error:
        if error.filename == os.fspath(partial):  # a name that says nothing to whoever reads it
            error.filename = os.fspath(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    sync_file(partial.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, replacing one that exists; see `replacing`."""
    with replacing(path) as partial, partial.open("xb") as file:
        file.write(data)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill with files; on leaving, it becomes `folder`.

    Only one process at a time may write the folder. What an earlier writer left half-written is
    removed first. A folder that exists steps aside just before: a writer that is killed between
    the two renames leaves none.

    Args:
        folder: The folder's place; its parent exists.

    Raises:
        OSError: It cannot be written; a folder that existed stays.
    """
    partial = folder.with_name(f".{folder.name}{_PARTIAL}")
    former = folder.with_name(f".{folder.name}.former{_PARTIAL}")
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in partial.iterdir():
            sync_file(path)
        sync_file(partial)
        if folder.exists():
            folder.replace(former)
        partial.replace(folder)
    except BaseException:
        if former.exists():
            former.replace(folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    try:
        sync_file(folder.parent)
    finally:
        shutil.rmtree(former, ignore_errors=True)


def give_usual_mode(path: Path) -> None:
    """Give a file the mode that a new one gets in its folder.

    The umask cannot be read without changing it for all threads, and a folder may have a default
    access list instead, so a new file is created to see its mode.
    """
    trial = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex}{_PARTIAL}")
    descriptor = os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        path.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode))
    finally:
        os.close(descriptor)
        trial.unlink()
