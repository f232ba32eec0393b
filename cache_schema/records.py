"""What a cache records about its own objects: the static ones, and each block's claim or commit.

All records are checksummed JSON under `commits/`. The record of a block is one object that goes
from missing to `claim` to `commit`. Each step is conditional on the previous one, so of all writers
that try a block exactly one commits it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum, check_checksum
from mav.cache_schema.errors import CacheError
from mav.cache_schema.shards import EncodedShard
from mav.cache_schema.storage.base import Bytes, ObjectStore

COMMITS: Final = "commits/"
STATIC_RECORD: Final = "commits/layout.json"


@dataclass(frozen=True, kw_only=True)
class ObjectRecord:
    """Size and digests of a stored object when it was written."""

    bytes: int
    sha256: str
    checksums: str | None
    """SHA-256 of the concatenated crc32c of its chunks; None for metadata."""


@dataclass(frozen=True, kw_only=True)
class StaticObjectsRecord:
    """The static objects of a cache: array descriptions, plan and unembedding."""

    cache: str
    """Identity of the cache; see `Manifest.identity`."""
    objects: dict[str, ObjectRecord]


@dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """A block that a writer has begun; it counts as not written."""

    block: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Proof that a block is written, with the records of its objects."""

    block: int
    pairs: int
    tokens: int
    attempt: str
    cache: str
    """Identity of the cache; see `Manifest.identity`."""
    content: str
    """SHA-256 over the decoded values; see `content_digest`."""
    objects: dict[str, ObjectRecord]


_KINDS: Final[dict[str, type]] = {
    "layout": StaticObjectsRecord,
    "claim": ClaimRecord,
    "commit": CommitRecord,
}
Record = StaticObjectsRecord | ClaimRecord | CommitRecord


def commit_key(block: int) -> str:
    """Return the key of a block's record."""
    return f"{COMMITS}{block:08d}.json"


def object_record(data: Bytes, shard: EncodedShard | None = None) -> ObjectRecord:
    """Return the record of an object that is about to be written."""
    return ObjectRecord(
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        checksums=shard.checksums if shard else None,
    )


def content_digest(rows: Mapping[str, NDArray[Any]]) -> str:
    """Return a SHA-256 over the used rows of a block, independent of chunking and compression.

    It covers, for each array in order of path: the path in UTF-8, a zero byte, and the values in C
    order, little-endian.
    """
    digest = hashlib.sha256()
    for path in sorted(rows):
        digest.update(path.encode() + b"\0")
        digest.update(np.ascontiguousarray(rows[path]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def encode_record(record: Record) -> bytes:
    """Return a record as checksummed JSON."""
    kind = next(name for name, cls in _KINDS.items() if type(record) is cls)
    return add_checksum(asdict(record) | {"record": kind, "seal": BLANK_CHECKSUM})


def decode_record(data: Bytes) -> Record:
    """Decode a record from checksummed JSON.

    Raises:
        ValueError: It is damaged, or not a record.
    """
    fields = check_checksum(data)
    try:
        cls = _KINDS[fields.pop("record")]
        del fields["seal"]
        if "objects" in fields:
            fields["objects"] = {
                key: ObjectRecord(**values) for key, values in fields["objects"].items()
            }
        record: Record = cls(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is not a record: {error}") from error
    return record


def read_static_record(objects: ObjectStore, cache: str) -> StaticObjectsRecord:
    """Read the record of a cache's static objects.

    Args:
        objects: The store.
        cache: Identity of the cache.

    Raises:
        CacheError: It is missing, damaged, or belongs to another cache.
    """
    try:
        record = decode_record(objects.read(STATIC_RECORD).data)
        if not isinstance(record, StaticObjectsRecord):
            raise ValueError("it is the record of a block")
        _require_own(record, cache)
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(
            f"{objects.location}/{STATIC_RECORD}: damaged ({describe_error(error)}). It is "
            f"written only once, so remove the cache and extract again."
        ) from error
    return record


def read_block_record(objects: ObjectStore, block: int, cache: str) -> ClaimRecord | CommitRecord:
    """Read the record of a block.

    Args:
        objects: The store.
        block: The block.
        cache: Identity of the cache.

    Raises:
        ValueError: It is damaged, or belongs to another block or cache.
        FileNotFoundError: The block has no record.
    """
    record = decode_record(objects.read(commit_key(block)).data)
    if isinstance(record, StaticObjectsRecord) or record.block != block:
        raise ValueError("it is the record of something else")
    if isinstance(record, CommitRecord):
        _require_own(record, cache)
    return record


def describe_error(error: Exception) -> str:
    """Return why a record could not be read, for error messages."""
    return "missing" if isinstance(error, FileNotFoundError) else str(error)


def _require_own(record: StaticObjectsRecord | CommitRecord, cache: str) -> None:
    if record.cache != cache:
        raise ValueError("it is the record of another cache than the root describes")
