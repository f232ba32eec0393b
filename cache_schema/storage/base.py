"""The interface of an object store, which holds a cache in a folder or in object storage.

Every part of a cache is an object under a key such as `labels/c.5`. All writes are conditional: a
writer names the version it expects to replace, or expects none, and the write fails if another
writer came first. The lock, claims and commits of a cache rest on that one rule.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import CacheBusyError

Bytes = bytes | memoryview

TOO_SHORT: Final = "it is shorter than expected"
TOO_LONG: Final = "it is longer than expected"


@dataclass(frozen=True, kw_only=True)
class ETag:
    """The version of an object, identified as by an HTTP entity tag.

    Attributes:
        tag: Entity tag, which changes with every write; for files, inode and modification time.
        generation: The store's own version number, if it has one.
        size: Size in bytes.
    """

    tag: str
    generation: str | None
    size: int


class ConflictError(Exception):
    """The object does not have the version a writer expected: another writer came first."""


class ObjectStore(Protocol):
    """A flat store of objects.

    Methods raise `OSError` if the store fails, and `FileNotFoundError` for a missing object.

    Attributes:
        location: Folder or address, as users name it.
    """

    location: str

    def read(self, key: str) -> NDArray[np.uint8]:
        """Return an object's bytes, uint8 [size]."""

    def read_parts(self, key: str, parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
        """Read an object into buffers, uint8 [n], one after the other.

        Yields the index of each buffer as soon as it is full, so that it can be checked while it
        is still in the processor's cache.

        Raises:
            ValueError: The object is shorter or longer than all buffers together.
        """

    def version(self, key: str) -> ETag | None:
        """Return an object's version, or None if it does not exist."""

    def sizes(self) -> dict[str, int]:
        """Return key -> size in bytes of every object; empty if the location does not exist."""

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        """Write an object durably and atomically.

        Args:
            key: Its key.
            data: Its bytes.
            expected: The version to replace, or None for a new object.

        Raises:
            ConflictError: The object has another version, which is not this very write whose
                response was lost. Nothing was written.
        """

    def rollback(self, key: str, data: Bytes) -> None:
        """Remove an object whose write failed, if it holds these bytes. Never raises.

        Only for bytes that no other writer can have written.
        """

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""

    def remove_temporaries(self) -> None:
        """Remove temporary files of killed writers, and make durable what they finished.

        No other writer may be active.
        """

    def remove_empty_dirs(self) -> None:
        """Remove empty folders, and the store's own folder if no object is left in it."""

    def free_bytes(self) -> int | None:
        """Return the free bytes, or None if there is no limit."""

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds an object, or None if objects are not files."""


def fill_parts(data: NDArray[np.uint8], parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
    """Implement `ObjectStore.read_parts` with the bytes of the whole object."""
    position = 0
    for number, part in enumerate(parts):
        if position + len(part) > len(data):
            raise ValueError(TOO_SHORT)
        part[:] = data[position : position + len(part)]
        position += len(part)
        yield number
    if position != len(data):
        raise ValueError(TOO_LONG)


def replace(objects: ObjectStore, key: str, data: Bytes) -> ETag:
    """Write an object regardless of its version, for keys that only one writer may write.

    Raises:
        CacheBusyError: Another writer wrote it at the same time.
    """
    try:
        return objects.write(key, data, objects.version(key))
    except ConflictError as error:
        raise CacheBusyError(
            f"{objects.location}: another run is writing to this cache at the same time ({key}). "
            f"This run stops; what it committed is kept."
        ) from error


def put(objects: ObjectStore, key: str, data: Bytes, require_ownership: Callable[[], None]) -> ETag:
    """Write an object, replacing what another attempt may have left under its key.

    Args:
        objects: The store.
        key: Its key.
        data: Its bytes.
        require_ownership: Raises if another writer has taken over the lock or the claim.
    """
    while True:
        # The version is read before ownership is checked. If another writer takes over after the
        # check, it either writes before us, and our write fails, or after us, and replaces it.
        version = objects.version(key)
        require_ownership()
        with contextlib.suppress(ConflictError):
            return objects.write(key, data, version)
