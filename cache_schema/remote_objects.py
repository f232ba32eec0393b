"""Objects in object storage, through obstore.

A PUT is durable and whole once it is answered, so what takes renaming and syncing in a folder is
one request here. Conditional PUTs (`If-None-Match`, `If-Match`) tell writers who came first.
Credentials and endpoints come from the environment, as obstore documents them.
"""

import contextlib
import errno
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore import exceptions
from obstore.store import from_url

from cache_schema.errors import CacheError, UsageError
from cache_schema.objects import Bytes, ConflictError, Version

_GIVE_UP: Final = timedelta(seconds=60)
_REFUSED: Final = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


class RemoteObjects:
    """A prefix of a bucket; see `Objects`."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        try:
            self._store: Any = from_url(
                self.location,
                client_options={"timeout": timedelta(minutes=30)},
                retry_config={"max_retries": 5, "retry_timeout": _GIVE_UP},
            )
        except exceptions.BaseError as error:
            raise UsageError(
                f"{location}: not a place caches can be kept ({_first_line(error)}). "
                f"Name a folder, or a URL such as s3://bucket/llama.cache."
            ) from error

    def read(self, key: str) -> NDArray[np.uint8]:
        """Return an object's bytes."""
        with self._told(key):
            data: Any = obstore.get(self._store, key).bytes()
        return np.frombuffer(data, np.uint8)

    def version(self, key: str) -> Version | None:
        """Return an object's version, or None if there is no such object."""
        with self._told(key):
            try:
                found = obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return _version(found, found["size"])

    def sizes(self) -> dict[str, int]:
        """Return the size of every object."""
        with self._told(""):
            return {
                item["path"]: item["size"]
                for page in obstore.list(self._store, chunk_size=1000)
                for item in page
            }

    def write(self, key: str, data: Bytes, expected: Version | None) -> Version:
        """Write an object, if it is still in the version expected."""
        mode: Any = "create"
        if expected is not None:
            mode = {"e_tag": expected.tag, "version": expected.generation}
        with self._told(key):
            try:
                # In one request: the parts of a multipart upload know no conditions.
                done = obstore.put(self._store, key, data, mode=mode, use_multipart=False)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                raise ConflictError(key) from error
        return _version(done, len(data))

    def withdraw(self, key: str, data: Bytes) -> None:
        """Do nothing: an object that was not answered for is whole if it is there."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._told(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def tidy(self) -> None:
        """Do nothing: an interrupted PUT leaves nothing."""

    def prune(self) -> None:
        """Do nothing: there are no folders."""

    def free_bytes(self) -> int | None:
        """Return None: buckets have no end."""
        return None

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """Return None: objects are not files here."""
        return None

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn the library's errors into those callers know."""
        try:
            yield
        except FileNotFoundError:
            raise
        except _REFUSED as error:
            raise CacheError(
                f"{self.location}: access refused ({_first_line(error)}). Set the credentials of "
                f"the storage in the environment, such as AWS_ACCESS_KEY_ID, "
                f"AWS_SECRET_ACCESS_KEY and AWS_REGION."
            ) from error
        except (exceptions.BaseError, OSError) as error:
            raise OSError(errno.EIO, _first_line(error), f"{self.location}/{key}") from error


def _version(found: Any, size: int) -> Version:
    return Version(tag=found["e_tag"] or "", generation=found["version"], size=size)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
