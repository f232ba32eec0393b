"""The files under a cache: durable writes, commit records, the root group's attributes.

A cache is a Zarr v3 group. Beside the arrays it has the group `commits`, which holds one JSON
record a committed block. A record is written after all shards of its block are on disk, so a block
without a record counts as not written, whatever lies in its place.
"""

import errno
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from cache_schema.arrays import ArrayLayout, shard_key
from cache_schema.errors import CacheError, CacheIncompleteError
from cache_schema.manifest import ATTRIBUTE, Manifest

COMMITS: Final = "commits"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Size and SHA-256 of one stored object."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LayoutRecord:
    """What lay on disk when the cache was created: descriptions, plan and unembedding."""

    shards: dict[str, ShardRecord]


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """Proof that a block is written: its shards as they were when they reached the disk."""

    block: int
    pairs: int
    tokens: int
    shards: dict[str, ShardRecord]


_Record = TypeVar("_Record", LayoutRecord, CommitRecord)


def write_record(path: Path, record: LayoutRecord | CommitRecord) -> None:
    """Write a record durably, as JSON with sorted keys."""
    write_durably(path, json.dumps(asdict(record), sort_keys=True, indent=1).encode())


def _read_record(kind: type[_Record], path: Path, remedy: str) -> _Record:
    """Read a record, or raise `CacheError` with the file's name and the remedy."""
    try:
        fields = json.loads(path.read_bytes())
        shards = {key: ShardRecord(**record) for key, record in fields.pop("shards").items()}
        return kind(shards=shards, **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CacheError(f"{path}: damaged commit record ({error}). {remedy}") from error


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is there whole, or not at all, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not know its file's name
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DurableStore(LocalStore):
    """Zarr's local store, with durable writes whose sizes and digests are kept.

    Zarr's own writes are renamed into place but never reach the disk by force, so a commit record
    could outlive the shards it speaks of.

    Attributes:
        written: Key -> record of every object written since the last `written.clear()`.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.written: dict[str, ShardRecord] = {}
        self._writing = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Wait for the write that is under way and let no other begin."""
        with self._writing:
            self._stopped = True

    async def set(self, key: str, value: Buffer) -> None:
        """Write one object durably."""
        self.set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write one object durably, if it is not there yet; zarr creates descriptions so."""
        if not (self.root / key).exists():
            self.set_sync(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one object durably."""
        self._check_writable()
        view = memoryview(value.as_buffer_like()).cast("B")
        with self._writing:
            if self._stopped:
                raise OSError(errno.ECANCELED, "another write of this array failed", key)
            write_durably(self.root / key, view)
        digest = hashlib.sha256(view).hexdigest()
        self.written[key] = ShardRecord(bytes=view.nbytes, sha256=digest)


def commit_path(root: Path, block: int) -> Path:
    """Return where a block's commit record lies."""
    return root / COMMITS / f"{block:08d}.json"


def layout_path(root: Path) -> Path:
    """Return where the record of what the cache was created with lies."""
    return root / COMMITS / "layout.json"


def read_commits(root: Path) -> Iterator[CommitRecord]:
    """Read the commit records of a cache, in block order."""
    remedy = (
        "Delete this file and run the extraction command again; only its block is computed anew."
    )
    for path in sorted((root / COMMITS).glob("[0-9]*.json")):
        record = _read_record(CommitRecord, path, remedy)
        if path != commit_path(root, record.block):
            raise CacheError(
                f"{path}: damaged commit record (it is that of block {record.block}). {remedy}"
            )
        yield record


def require_layout(root: Path) -> None:
    """Check that all a cache was created with is still there in full size.

    Raises:
        CacheError: Something is missing or of another size; only a new extraction mends that.
    """
    remedy = "Plan and unembedding are written once, so remove the cache and extract again."
    record = _read_record(LayoutRecord, layout_path(root), remedy)
    problems = [shard_problem(root, key, shard) for key, shard in record.shards.items()]
    lost = [problem for problem in problems if problem]
    if lost:
        raise CacheError(f"{root}: damaged, {lost[0]}. {remedy}")


def shard_problem(root: Path, key: str, record: ShardRecord) -> str | None:
    """Say what is wrong with a stored object by existence and size, or None."""
    try:
        size = (root / key).stat().st_size
    except FileNotFoundError:
        return f"{key}: missing, expected {record.bytes} bytes"
    return None if size == record.bytes else f"{key}: {size} bytes, expected {record.bytes}"


def commit_problems(
    root: Path, record: CommitRecord, layouts: Mapping[str, ArrayLayout]
) -> list[str]:
    """Say what is wrong with a committed block: shards not recorded, missing or of another size."""
    expected = {
        shard_key(layout, record.block)
        for layout in layouts.values()
        if layout.spec.kind == "block"
    }
    if set(record.shards) != expected:
        return [
            f"block {record.block}: its commit record names {len(record.shards)} shards, "
            f"expected {len(expected)}: {', '.join(sorted(expected))}"
        ]
    found = [shard_problem(root, key, shard) for key, shard in record.shards.items()]
    return [problem for problem in found if problem]


def open_root(root: Path, store: LocalStore | None = None) -> tuple[zarr.Group, Manifest]:
    """Open the root group of a cache and its manifest.

    Args:
        root: Folder of the cache.
        store: The store to open it through; a read-only one by default.

    Raises:
        CacheError: There is no cache, or it cannot be read.
    """
    if not root.exists():
        raise CacheError(f"{root}: no such cache. `mav extract --output {root}` makes one.")
    if not (root / "zarr.json").is_file():
        raise CacheError(
            f"{root}: not a MAV cache (it has no zarr.json). Name the folder that "
            f"`mav extract --output` wrote."
        )
    try:
        group = zarr.open_group(
            store or LocalStore(root, read_only=True), mode="r+" if store else "r"
        )
    except Exception as error:
        raise CacheError(f"{root}: zarr.json cannot be read as a Zarr v3 group: {error}") from error
    attributes: dict[str, Any] = dict(group.attrs)
    if ATTRIBUTE not in attributes:
        raise CacheError(f"{root}: a Zarr group, but not a MAV cache (no attribute {ATTRIBUTE!r})")
    return group, Manifest.from_json(attributes[ATTRIBUTE], str(root))


def stored_bytes(root: Path) -> int:
    """Return the bytes of all files of a cache."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def require_complete(root: Path, manifest: Manifest, committed: int) -> None:
    """Raise `CacheIncompleteError`, with the remedy, unless every block is committed."""
    if manifest.complete and committed == manifest.plan.blocks:
        return
    raise CacheIncompleteError(
        f"{root}: incomplete, {committed} of {manifest.plan.blocks} blocks are written. "
        f"Run the same `mav extract` command again; it goes on where it stopped."
    )
