"""An object store in memory, which behaves as object storage does."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.storage.base import (
    Bytes,
    ConflictError,
    ETag,
    fill_parts,
)


class MemoryObjectStore:
    """Objects as object storage keeps them: requests are whole, and versions have tags.

    Args:
        tags: Whether a tag is one of the write, as Google's, or of the content, as S3's.
    """

    def __init__(self, tags: Literal["write", "content"]) -> None:
        self.location = "memory"
        self._tags = tags
        self._numbers = itertools.count()
        self._found: dict[str, tuple[bytes, ETag]] = {}

    def read(self, key: str) -> NDArray[np.uint8]:
        if key not in self._found:
            raise FileNotFoundError(key)
        return np.frombuffer(self._found[key][0], np.uint8)

    def read_parts(self, key: str, parts: Iterable[NDArray[np.uint8]]) -> Iterator[int]:
        yield from fill_parts(self.read(key), parts)

    def version(self, key: str) -> ETag | None:
        return self._found[key][1] if key in self._found else None

    def sizes(self) -> dict[str, int]:
        return {key: version.size for key, (_, version) in self._found.items()}

    def write(self, key: str, data: Bytes, expected: ETag | None) -> ETag:
        if self.version(key) != expected:
            raise ConflictError(key)
        content = bytes(data)
        of_content = self._tags == "content"
        tag = hashlib.sha256(content).hexdigest() if of_content else str(next(self._numbers))
        self._found[key] = content, ETag(tag=tag, generation=None, size=len(content))
        return self._found[key][1]

    def delete(self, key: str) -> None:
        self._found.pop(key, None)

    def rollback(self, key: str, data: Bytes) -> None:
        """Nothing, as with object storage."""

    def remove_temporaries(self) -> None:
        """Nothing either."""

    def remove_empty_dirs(self) -> None:
        """Nothing either."""

    def free_bytes(self) -> int | None:
        return None

    def local_path(self, key: str) -> Path | None:
        return None
