"""Where a cache is kept: named objects in a folder or in object storage.

Everything a cache is made of is one object under a key such as `labels/c.5`. All writing is
conditional: a writer says which version it expects to replace, or that it expects none, and is
detected when another writer came first. Locks, claims and commits of a cache rest on that one rule.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.errors import CacheBusyError

Bytes = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class ETag:
    """One version of an object's content, as an HTTP entity tag identifies it.

    Attributes:
        tag: Changes with every write (an entity tag; for files, inode and time).
        generation: The store's own version, where it has one.
        size: Bytes.
    """

    tag: str
    generation: str | None
    size: int


class ConflictError(Exception):
    """The object is not in the version a writer expected; another writer came first."""


class ObjectStore(Protocol):
    """A flat store of objects.

    Methods raise `OSError` where the store fails; `FileNotFoundError` for a missing object.

    Attributes:
        location: Folder or URL, as the user knows it.
    """

    location: str

    def read(self, key: str) -> NDArray[np.uint8]:
        """Return an object's bytes [size]."""

    def read_parts(self, key: str, parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
        """Fill buffers [n] with an object's bytes, one after the other.

        Yields the index of each buffer as soon as it is full, so that what was read can be looked
        at while it is still in the processor's cache.

        Raises:
            ValueError: The object ends before the last buffer is full, or does not end there.
        """

    def version(self, key: str) -> ETag | None:
        """Return an object's version, or None if there is no such object."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every object; none if the place does not exist."""

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        """Write an object durably, whole or not at all.

        Args:
            key: Its key.
            data: Its bytes.
            expected: The version to replace, or None for a new object.

        Raises:
            ConflictError: The object is in another version, and it is not these bytes that a lost
                answer made it to. Nothing was written.
        """

    def rollback(self, key: str, data: Bytes) -> None:
        """Remove an object whose writing failed, if it holds these bytes. Never raises.

        Only for bytes that no other writer writes.
        """

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    def remove_temporaries(self) -> None:
        """Remove what killed writers left half-written, and make durable what they left whole.

        Only one writer may be there.
        """

    def remove_empty_dirs(self) -> None:
        """Remove empty folders, and the place itself if no object is left in it."""

    def free_bytes(self) -> int | None:
        """Return the free bytes, or None where there is no limit."""

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds an object, if it is one."""


def fill_parts(data: NDArray[np.uint8], parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
    """Do what `ObjectStore.read_parts` does, from an object that has been read whole."""
    at = 0
    for number, part in enumerate(parts):
        if at + len(part) > len(data):
            raise ValueError("it ends early")
        part[:] = data[at : at + len(part)]
        at += len(part)
        yield number
    if at != len(data):
        raise ValueError("it does not end where it should")


def replace(objects: ObjectStore, key: str, data: Bytes) -> ETag:
    """Write an object whatever version it is in, for keys that one writer alone has to do with.

    Raises:
        CacheBusyError: Another writer had to do with it at the same time.
    """
    try:
        return objects.write(key, data, objects.version(key))
    except ConflictError as error:
        raise CacheBusyError(
            f"{objects.location}: another run writes to this cache at the same time ({key}). This "
            f"run stops; what it committed is kept."
        ) from error


def put(objects: ObjectStore, key: str, data: Bytes, still_ours: Callable[[], None]) -> ETag:
    """Write an object in place of whatever another attempt left there.

    Args:
        objects: Where to.
        key: Its key.
        data: Its bytes.
        still_ours: Raises if lock or claim have gone to another writer.
    """
    while True:
        # In this order: were it lost after the check, whoever has it now wrote after the version
        # was read, and is in our way; or has yet to write, and will find us in its own.
        seen = objects.version(key)
        still_ours()
        with contextlib.suppress(ConflictError):
            return objects.write(key, data, seen)
