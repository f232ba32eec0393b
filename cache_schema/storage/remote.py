"""Objects in a bucket, through obstore.

A PUT that was answered is durable and atomic, so one request does what takes renaming and flushing
in a folder. Conditional PUTs (`If-None-Match`, `If-Match`) decide which writer came first.
Credentials and endpoints come from the environment, as obstore documents them.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from mav.cache_schema.errors import CacheError, UsageError
from mav.cache_schema.storage.addresses import StorageAddress, parse_address
from mav.cache_schema.storage.base import Bytes, ConflictError, ETag, fill_parts

_TIMEOUT: Final = timedelta(minutes=10)
"""For one request with its body: enough for a block at half a megabyte per second."""
_RETRY_TIMEOUT: Final = timedelta(seconds=60)
_ENDPOINTS: Final = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
_REFUSED: Final = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


class RemoteObjectStore:
    """A prefix of a bucket; see `ObjectStore`."""

    def __init__(self, location: str) -> None:
        address = parse_address(location)
        self.location = address.location
        try:
            self._store: Any = _store(address)
        except (exceptions.BaseError, ValueError) as error:
            raise UsageError(
                f"{location}: cannot hold a cache ({_reason(error)}). "
                f"Name a folder, or an address such as s3://bucket/llama.cache."
            ) from error

    def read(self, key: str) -> NDArray[np.uint8]:
        """Return an object's bytes."""
        with self._translated_errors(key):
            data: Any = obstore.get(self._store, key).bytes()
        return np.frombuffer(data, np.uint8)

    def read_parts(self, key: str, parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
        """Read an object into buffers, one after the other."""
        yield from fill_parts(self.read(key), parts)

    def version(self, key: str) -> ETag | None:
        """Return an object's version, or None if it does not exist."""
        with self._translated_errors(key):
            try:
                metadata = obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return _version(metadata, metadata["size"])

    def sizes(self) -> dict[str, int]:
        """Return key -> size of every object.

        A listing comes in pages of a thousand, one after the other, so the arrays of a cache are
        listed side by side.
        """
        with self._translated_errors(""):
            top: Any = obstore.list_with_delimiter(self._store)
            folders = top["common_prefixes"]
            # Some stores keep an object for a folder, here of the cache itself, without a name.
            found = {item["path"]: item["size"] for item in top["objects"] if item["path"]}
            with ThreadPoolExecutor(max(1, len(folders)), thread_name_prefix="listing") as pool:
                for listed in pool.map(self._sizes_under, folders):
                    found |= listed
        return found

    def _sizes_under(self, folder: str) -> dict[str, int]:
        pages: Any = obstore.list(self._store, prefix=folder, chunk_size=1000)
        return {item["path"]: item["size"] for page in pages for item in page}

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        """Write an object if it still has the expected version."""
        mode: Any = "create"
        if expected is not None:
            mode = {"e_tag": expected.tag}
            if expected.generation is not None:
                mode["version"] = expected.generation
        with self._translated_errors(key):
            try:
                result = obstore.put(self._store, key, data, mode=mode)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                # If a response is lost, the library retries and conflicts with its own write.
                if (version := self._if_ours(key, data)) is not None:
                    return version
                raise ConflictError(key) from error
            except FileNotFoundError as error:
                raise self._no_bucket() from error
        return _version(result, len(data))

    def _if_ours(self, key: str, data: Bytes) -> ETag | None:
        """Return an object's version if it holds these bytes, else None."""
        version = self.version(key)
        if version is None or version.size != len(data):
            return None
        return version if self.read(key).tobytes() == bytes(data) else None

    def rollback(self, key: str, data: Bytes) -> None:
        """Do nothing: a PUT whose response was lost is either complete or absent."""

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        with self._translated_errors(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def remove_temporaries(self) -> None:
        """Do nothing: an interrupted PUT leaves nothing."""

    def remove_empty_dirs(self) -> None:
        """Do nothing: there are no folders."""

    def free_bytes(self) -> int | None:
        """Return None: buckets have no limit."""
        return None

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """Return None: objects in a bucket are not files."""
        return None

    @contextlib.contextmanager
    def _translated_errors(self, key: str) -> Iterator[None]:
        """Turn the library's errors into those that `ObjectStore` names."""
        try:
            yield
        except (FileNotFoundError, ConflictError, CacheError):
            raise
        except (exceptions.BaseError, OSError) as error:
            reason = _reason(error)
            # Errors of listing have no kind, only the text of the response.
            if isinstance(error, _REFUSED) or " 403 " in reason:
                raise CacheError(
                    f"{self.location}: access refused ({reason}). Set the credentials for the "
                    f"storage in the environment, such as AWS_ACCESS_KEY_ID, "
                    f"AWS_SECRET_ACCESS_KEY and AWS_REGION."
                ) from error
            if " 404 " in reason:
                raise self._no_bucket() from error
            raise OSError(errno.EIO, reason, f"{self.location}/{key}") from error

    def _no_bucket(self) -> CacheError:
        return CacheError(
            f"{self.location}: the bucket does not exist. Create it, or name another."
        )


def _store(address: StorageAddress) -> Any:
    """Return a store of the objects under a prefix.

    Built from the parts of the address, because the library would parse the address as a URL.
    """
    options: dict[str, Any] = {
        "prefix": address.prefix or None,
        "client_options": {"timeout": _TIMEOUT, "allow_http": _asks_for_http()},
        "retry_config": {"max_retries": 5, "retry_timeout": _RETRY_TIMEOUT},
    }
    if address.storage == "s3":
        return S3Store(address.bucket, **options)
    if address.storage == "gs":
        return GCSStore(address.bucket, **options)
    if address.account is not None:
        options["account_name"] = address.account
    return AzureStore(address.bucket, **options)


def _version(metadata: Any, size: int) -> ETag:
    return ETag(tag=metadata["e_tag"] or "", generation=metadata["version"], size=size)


def _asks_for_http() -> bool:
    """Return whether the environment names an unencrypted endpoint, such as a local server."""
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS]
    return any(endpoint.startswith("http://") for endpoint in endpoints)


def _reason(error: Exception) -> str:
    """Return the first line of an error message, without the XML body of the response."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(": <?xml")[0]
