"""Objects as files in a folder, written so that a power failure can neither truncate nor lose them.

A file is written under a temporary name and flushed, then gets its name, and then its folder is
flushed. A new object gets its name by a hard link, which fails if the name is taken; an existing
one is replaced by renaming, under a file lock and after comparing versions. A file lock ends with
the process that holds it.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import CacheError
from mav.cache_schema.storage.base import TOO_LONG, TOO_SHORT, Bytes, ConflictError, ETag

_MUTEX: Final = ".mutex"
_PARTIAL: Final = ".partial"
_ATTEMPTS: Final = 3
_WITHOUT_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class LocalObjectStore:
    """A folder of objects; see `ObjectStore`."""

    def __init__(self, root: Path) -> None:
        self.location = str(root)
        self._root = root

    def read(self, key: str) -> NDArray[np.uint8]:
        """Return an object's bytes."""
        return np.fromfile(self._root / key, np.uint8)

    def read_parts(self, key: str, parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
        """Read an object into buffers, one after the other."""
        path = self._root / key
        with _named(path):
            file = os.open(path, os.O_RDONLY)
            try:
                for number, part in enumerate(parts):
                    filled = 0
                    while filled < len(part):
                        count = os.readv(file, [part[filled:].data])
                        if not count:
                            raise ValueError(TOO_SHORT)
                        filled += count
                    yield number
                if os.read(file, 1):
                    raise ValueError(TOO_LONG)
            finally:
                os.close(file)

    def version(self, key: str) -> ETag | None:
        """Return an object's version, or None if it does not exist."""
        return _version_of(self._root / key)

    def sizes(self) -> dict[str, int]:
        """Return key -> size of every object; names with a leading dot are not objects."""
        if self._root.is_file():
            raise CacheError(
                f"{self._root}: a file, so it is not a MAV cache. Name a folder instead."
            )
        return dict(_walk(str(self._root), ""))

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        """Write an object durably and atomically."""
        path = self._root / key
        with _named(path):
            for _ in range(_ATTEMPTS - 1):
                # A run that ends removes empty folders, and one that begins temporary files.
                with contextlib.suppress(FileNotFoundError):
                    return self._write(path, data, expected)
            return self._write(path, data, expected)

    def _write(self, path: Path, data: Bytes, expected: ETag | None) -> ETag:
        _make_folder(path.parent)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}"
        published: ETag | None = None
        try:
            # Opened first: after the file has its name, the process may be out of descriptors.
            with _opened(path.parent) as folder:
                try:
                    version = _write_new(temporary, data)
                    if expected is None:
                        self._give_name(temporary, path)
                    else:
                        self._replace(temporary, path, expected)
                    published = version
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary)
                os.fsync(folder)
        except OSError:
            if published is not None and expected is None:
                # A new name that may not be durable is removed; a replaced object cannot be.
                with contextlib.suppress(OSError), self._mutex():
                    if _version_of(path) == published:
                        os.unlink(path)
            raise
        return version

    def rollback(self, key: str, data: Bytes) -> None:
        """Remove an object whose write failed, if it holds these bytes."""
        path = self._root / key
        with contextlib.suppress(OSError), self._mutex():
            if path.read_bytes() == bytes(data):
                os.unlink(path)

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._root / key)
            sync_directory((self._root / key).parent)

    def remove_temporaries(self) -> None:
        """Remove temporary files of killed writers, and make durable what they finished."""
        if not self._root.exists():
            return
        for inside, _, names in os.walk(self._root):
            for name in names:
                if name.startswith(".") and name.endswith(_PARTIAL):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(Path(inside, name))
            # Files were flushed before they got their names; the names perhaps were not.
            sync_directory(Path(inside))
        for folder in self._root.absolute().parents:
            with contextlib.suppress(PermissionError):  # another user's, so not created here
                sync_directory(folder)

    def remove_empty_dirs(self) -> None:
        """Remove empty folders, and the store's own folder if no object is left in it."""
        for folder, _, _ in os.walk(self._root, topdown=False):
            if folder == str(self._root) and os.listdir(folder) == [_MUTEX]:
                os.unlink(self._root / _MUTEX)
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def free_bytes(self) -> int | None:
        """Return the free bytes of the file system that holds, or would hold, the folder."""
        folder = self._root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds an object."""
        return self._root / key

    def _give_name(self, temporary: Path, path: Path) -> None:
        try:
            os.link(temporary, path)
        except FileExistsError as error:
            raise ConflictError(str(path)) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            # Some network and removable file systems have no hard links.
            with self._mutex():
                if path.exists():
                    raise ConflictError(str(path)) from error
                os.rename(temporary, path)

    def _replace(self, temporary: Path, path: Path, expected: ETag) -> None:
        with self._mutex():
            if _version_of(path) != expected:
                raise ConflictError(str(path))
            os.rename(temporary, path)

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        """Exclude all other writers that compare versions and rename in this folder."""
        descriptor = os.open(self._root / _MUTEX, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    with _named(path), _opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to errors of calls on file descriptors."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each durably."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_directory(folder.parent)


def _write_new(path: Path, data: Bytes) -> ETag:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        # The time that file systems set is too coarse to distinguish versions.
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        os.fsync(descriptor)
        return _version(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def _version_of(path: Path) -> ETag | None:
    try:
        return _version(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _version(status: os.stat_result) -> ETag:
    return ETag(tag=f"{status.st_ino}-{status.st_mtime_ns}", generation=None, size=status.st_size)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                yield f"{prefix}{entry.name}", entry.stat().st_size
