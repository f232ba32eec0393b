"""Which blocks of a cache are committed, and which objects are missing or truncated."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from mav.cache_schema.arrays import ArrayLayout, block_keys
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.records import (
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    ObjectRecord,
    StaticObjectsRecord,
    commit_key,
    describe_error,
    read_block_record,
)
from mav.cache_schema.storage.base import ObjectStore

_FILES_AT_ONCE: Final = 32
_REQUESTS_AT_ONCE: Final = 256
"""Records that are read at a time. Object storage takes tens of milliseconds for each: at 30, ten
thousand take 2 s, and 10 s where 32 are asked for at a time."""


@dataclass(frozen=True, order=True)
class Problem:
    """Damage to one object of a cache.

    Attributes:
        key: Key of the object.
        reason: What is wrong with it.
        block: The block it belongs to; None for a static object.
    """

    key: str
    reason: str
    block: int | None

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Commits:
    """The block records of a cache.

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
        sizes: Size of each object; blocks without a record are not read.
    """
    cache = manifest.identity()
    commits = Commits(records={}, damaged={})

    def read(block: int) -> ClaimRecord | CommitRecord | Problem:
        try:
            return read_block_record(objects, block, cache)
        except (FileNotFoundError, ValueError) as error:
            return Problem(commit_key(block), f"damaged ({describe_error(error)})", block)

    recorded = [block for block in range(manifest.plan.blocks) if commit_key(block) in sizes]
    are_files = objects.local_path(STATIC_RECORD) is not None
    at_once = _FILES_AT_ONCE if are_files else _REQUESTS_AT_ONCE
    with ThreadPoolExecutor(at_once, thread_name_prefix="records") as pool:
        for block, result in zip(recorded, pool.map(read, recorded), strict=True):
            if isinstance(result, Problem):
                commits.damaged[block] = result
            elif isinstance(result, CommitRecord):
                commits.records[block] = result
    return commits


def own_keys(
    static: StaticObjectsRecord, arrays: Mapping[str, ArrayLayout], blocks: int
) -> set[str]:
    """Return the keys of all objects a cache may have, except its root and its lock."""
    keys = {STATIC_RECORD, *static.objects}
    for block in range(blocks):
        keys |= {commit_key(block), *block_keys(arrays, block)}
    return keys


def size_problem(record: ObjectRecord, size: int | None) -> str | None:
    """Return what is wrong with an object, judged by its size (None if it is missing), or None."""
    if size is None:
        return f"missing, expected {record.bytes} bytes"
    return None if size == record.bytes else f"{size} bytes, expected {record.bytes}"


def lost_blocks(
    objects: ObjectStore,
    commits: Commits,
    arrays: Mapping[str, ArrayLayout],
    sizes: Mapping[str, int],
) -> dict[int, list[Problem]]:
    """Return the problems of committed blocks whose objects are missing or truncated.

    Args:
        objects: The store.
        commits: Its commits.
        arrays: Its arrays.
        sizes: Size of each object, listed before the commits were read.
    """

    def compare(sizes: Mapping[str, int]) -> dict[int, list[Problem]]:
        by_block = {
            block: commit_problems(record, arrays, sizes)
            for block, record in commits.records.items()
        }
        return {block: problems for block, problems in by_block.items() if problems}

    # A block may have been committed after the objects were listed, so list them again.
    return compare(objects.sizes()) if compare(sizes) else {}


def commit_problems(
    record: CommitRecord, arrays: Mapping[str, ArrayLayout], sizes: Mapping[str, int]
) -> list[Problem]:
    """Return the problems of a committed block: objects not recorded, missing or truncated."""
    expected = block_keys(arrays, record.block)
    if set(record.objects) != expected:
        return [
            Problem(
                commit_key(record.block),
                f"it names {len(record.objects)} objects, expected {len(expected)}: "
                f"{', '.join(sorted(expected))}",
                record.block,
            )
        ]
    return object_problems(record.objects, sizes, record.block)


def object_problems(
    records: Mapping[str, ObjectRecord], sizes: Mapping[str, int], block: int | None = None
) -> list[Problem]:
    """Return the objects that are missing or have another size than was recorded.

    Args:
        records: Key -> record.
        sizes: Size of each stored object.
        block: The block they belong to; None for static objects.
    """
    reasons = {key: size_problem(record, sizes.get(key)) for key, record in records.items()}
    return [Problem(key, reason, block) for key, reason in reasons.items() if reason]
