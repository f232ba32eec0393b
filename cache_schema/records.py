"""What a cache records about its own objects: the layout, and for each block its claim or commit.

All records are sealed JSON under `commits/`. The record of a block is one object that goes from
missing to `claim` to `commit`, each step conditional on the one before, so of all writers that ever
tried a block exactly one commits it.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, block_keys
from mav.cache_schema.checksummed_json import UNSEALED, add_checksum, check_checksum
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.shards import EncodedShard
from mav.cache_schema.storage.base import Bytes, ObjectStore

COMMITS: Final = "commits/"
LAYOUT: Final = "commits/layout.json"
_AT_ONCE: Final = 32
"""Records that are asked for at a time; object storage answers each in tens of milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ObjectRecord:
    """One stored object as it was when it was written."""

    bytes: int
    sha256: str
    checksums: str | None
    """SHA-256 of its chunks' crc32c one after the other; none for metadata."""


@dataclass(frozen=True, kw_only=True)
class LayoutRecord:
    """All objects a cache was created with: array descriptions, plan and unembedding."""

    cache: str
    """Identity of the cache; see `Manifest.identity`."""
    objects: dict[str, ObjectRecord]


@dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """A block that a writer began; it counts as not written."""

    block: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Proof that a block is written: its objects as they were when they became durable."""

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
    "layout": LayoutRecord,
    "claim": ClaimRecord,
    "commit": CommitRecord,
}
Record = LayoutRecord | ClaimRecord | CommitRecord


def commit_key(block: int) -> str:
    """Return the key of a block's record."""
    return f"{COMMITS}{block:08d}.json"


def object_record(data: Bytes, shard: EncodedShard | None = None) -> ObjectRecord:
    """Describe an object that is about to be written."""
    return ObjectRecord(
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        checksums=shard.checksums if shard else None,
    )


def content_digest(rows: Mapping[str, NDArray[Any]]) -> str:
    """Return a SHA-256 over the used rows of a block, independent of chunks and compression.

    It covers, for each array in order of its path: the path in UTF-8, a zero byte, and the values
    in C order, little-endian.
    """
    digest = hashlib.sha256()
    for path in sorted(rows):
        digest.update(path.encode() + b"\0")
        digest.update(np.ascontiguousarray(rows[path]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def encode_record(record: Record) -> bytes:
    """Return a record as sealed JSON."""
    kind = next(name for name, cls in _KINDS.items() if type(record) is cls)
    return add_checksum(asdict(record) | {"record": kind, "seal": UNSEALED})


def decode_record(data: Bytes) -> Record:
    """Return the record in sealed JSON.

    Raises:
        ValueError: It is damaged, or no record.
    """
    fields = check_checksum(data)
    try:
        cls = _KINDS[fields.pop("record")]
        del fields["seal"]
        if "objects" in fields:
            fields["objects"] = {
                key: ObjectRecord(**found) for key, found in fields["objects"].items()
            }
        record: Record = cls(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"it is not a record: {error}") from error
    return record


def read_layout(objects: ObjectStore, cache: str) -> LayoutRecord:
    """Read the record of what the cache was created with.

    Args:
        objects: The store.
        cache: Identity of the cache.

    Raises:
        CacheError: It is missing, damaged, or that of another cache.
    """
    try:
        record = decode_record(objects.read(LAYOUT).data)
        if not isinstance(record, LayoutRecord):
            raise ValueError("it is the record of a block")
        _require_own(record, cache)
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(
            f"{objects.location}/{LAYOUT}: damaged ({_reason(error)}). It is written once, so "
            f"remove the cache and extract again."
        ) from error
    return record


def read_block_record(objects: ObjectStore, block: int, cache: str) -> ClaimRecord | CommitRecord:
    """Read the record of a block.

    Args:
        objects: The store.
        block: The block.
        cache: Identity of the cache.

    Raises:
        ValueError: It is damaged, or that of another block or cache.
        FileNotFoundError: There is none.
    """
    record = decode_record(objects.read(commit_key(block)).data)
    if isinstance(record, LayoutRecord) or record.block != block:
        raise ValueError("it is the record of something else")
    if isinstance(record, CommitRecord):
        _require_own(record, cache)
    return record


@dataclass(frozen=True, order=True)
class Problem:
    """Something that is wrong with a cache.

    Attributes:
        key: Key of the object, or another name of what is wrong.
        reason: What is wrong with it.
    """

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Commits:
    """The block records of a cache as they were read.

    Attributes:
        records: Block -> its commit.
        damaged: Block -> the problem with its record.
    """

    records: dict[int, CommitRecord]
    damaged: dict[int, Problem]


def read_commits(objects: ObjectStore, manifest: Manifest, sizes: Mapping[str, int]) -> Commits:
    """Read the commit records of all blocks.

    Args:
        objects: The store.
        manifest: The cache's manifest.
        sizes: Its objects; blocks without a record are not asked for.
    """
    cache = manifest.identity()
    commits = Commits(records={}, damaged={})

    def read(block: int) -> ClaimRecord | CommitRecord | Problem:
        try:
            return read_block_record(objects, block, cache)
        except (FileNotFoundError, ValueError) as error:
            return Problem(commit_key(block), f"damaged ({_reason(error)})")

    known = [block for block in range(manifest.plan.blocks) if commit_key(block) in sizes]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="records") as pool:
        for block, result in zip(known, pool.map(read, known), strict=True):
            if isinstance(result, Problem):
                commits.damaged[block] = result
            elif isinstance(result, CommitRecord):
                commits.records[block] = result
    return commits


def own_keys(layout: LayoutRecord, every: Mapping[str, ArrayLayout], blocks: int) -> set[str]:
    """Return the keys of all objects a cache may have, but its root and its lock."""
    keys = {LAYOUT, *layout.objects}
    for block in range(blocks):
        keys |= {commit_key(block), *block_keys(every, block)}
    return keys


def object_problem(key: str, record: ObjectRecord, sizes: Mapping[str, int]) -> Problem | None:
    """Return the problem with a stored object by existence and size, or None."""
    size = sizes.get(key)
    if size is None:
        return Problem(key, f"missing, expected {record.bytes} bytes")
    return None if size == record.bytes else Problem(key, f"{size} bytes, expected {record.bytes}")


def lost_blocks(
    objects: ObjectStore,
    commits: Commits,
    layouts: Mapping[str, ArrayLayout],
    sizes: Mapping[str, int],
) -> dict[int, list[Problem]]:
    """Return the problems of committed blocks whose objects are missing or truncated.

    Args:
        objects: The store.
        commits: Its commits.
        layouts: Its arrays.
        sizes: Its objects, as they were before the commits were read.
    """

    def compare(sizes: Mapping[str, int]) -> dict[int, list[Problem]]:
        by_block = {
            block: commit_problems(record, layouts, sizes)
            for block, record in commits.records.items()
        }
        return {block: problems for block, problems in by_block.items() if problems}

    # A block that was committed after the objects were listed is not lost: list them again.
    return compare(objects.sizes()) if compare(sizes) else {}


def commit_problems(
    record: CommitRecord, layouts: Mapping[str, ArrayLayout], sizes: Mapping[str, int]
) -> list[Problem]:
    """Return the problems of a committed block: objects not recorded, missing or truncated."""
    expected = block_keys(layouts, record.block)
    if set(record.objects) != expected:
        return [
            Problem(
                commit_key(record.block),
                f"it names {len(record.objects)} objects, expected {len(expected)}: "
                f"{', '.join(sorted(expected))}",
            )
        ]
    return object_problems(record.objects, sizes)


def object_problems(records: Mapping[str, ObjectRecord], sizes: Mapping[str, int]) -> list[Problem]:
    """Return the problems of several stored objects by existence and size."""
    problems = (object_problem(key, record, sizes) for key, record in records.items())
    return [problem for problem in problems if problem]


def _require_own(record: LayoutRecord | CommitRecord, cache: str) -> None:
    if record.cache != cache:
        raise ValueError("it is the record of another cache than the root describes")


def _reason(error: Exception) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else str(error)
