"""Reading a cache block by block, with every byte checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.commits import lost_blocks, object_problems, read_commits
from mav.cache_schema.encoding.quantization import restore
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.records import (
    STATIC_RECORD,
    ObjectRecord,
    StaticObjectsRecord,
    read_static_record,
)
from mav.cache_schema.root import read_manifest
from mav.cache_schema.shards import read_shard, shard_memory
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store

_MOST_NAMED: Final = 10
_REMEDY: Final = (
    "`mav verify --repair {location}` removes what is damaged; the same `mav extract` command then "
    "writes it again."
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The used rows of one block.

    Attributes:
        number: Its number.
        pairs: Its pairs, as indices into the cache's pairs.
        offsets: int64 [2 * pairs + 1], first row of each response inside the block: chosen and
            rejected of the first pair, of the second, and so on; then the number of rows.
        rows: Array path -> values [rows, ...] as stored, but with quantized states dequantized.
    """

    number: int
    pairs: range
    offsets: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]


class BlockMemory:
    """Buffers that one block after another is read into.

    Allocating memory that is new to the process takes longer than filling it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def buffer(self, path: str, size: int) -> NDArray[np.uint8]:
        """Return a buffer of at least `size` bytes; it replaces the one returned before."""
        if len(self._buffers.get(path, ())) < size:
            self._buffers[path] = np.empty(size, np.uint8)
        return self._buffers[path]


class CacheReader:
    """A complete cache, opened for reading.

    Attributes:
        location: Folder or URL of the cache.
        manifest: Its manifest.
        plan: The rows of each pair.
        pair_id: uint64 [pairs].
        prompt_id: uint64 [pairs].
        evaluation_only: bool [pairs], whether a pair came from a data set for evaluation only.
    """

    def __init__(self, location: str | Path) -> None:
        """Open a cache and check that every object of every block exists and has its full size.

        Raises:
            CacheError: It is missing, damaged, or has another format version.
            CacheIncompleteError: Its extraction has not finished.
        """
        self._objects = open_object_store(location)
        self.location = self._objects.location
        self.manifest = read_manifest(self._objects)
        self._sizes = self._objects.sizes()
        self._arrays = layouts(self.manifest)
        self._static = require_static_objects(self._objects, self.manifest, self._sizes)
        commits = read_commits(self._objects, self.manifest, self._sizes)
        problems = [*commits.damaged.values()]
        if not problems:
            require_complete(self.location, self.manifest, len(commits.records))
        lost = lost_blocks(self._objects, commits, self._arrays, self._sizes)
        problems += [problem for of_block in lost.values() for problem in of_block]
        if problems:
            raise CacheError(
                f"{self.location}: {len(problems)} damaged objects:{listed(problems)}\nRun the "
                f"same `mav extract` command again; it computes damaged blocks again."
            )
        self._commits = commits.records
        self.plan = BlockPlan(
            block_tokens=self.manifest.plan.block_tokens,
            block_start=self._read_whole("pairs/block_start"),
            response_start=self._read_whole("pairs/response_start"),
            response_length=self._read_whole("pairs/response_length"),
        )
        self.pair_id: NDArray[np.uint64] = self._read_whole("pairs/pair_id")
        self.prompt_id: NDArray[np.uint64] = self._read_whole("pairs/prompt_id")
        held_out = np.array([source.held_out for source in self.manifest.data.sources])
        self.evaluation_only: NDArray[np.bool_] = held_out[self.read_sources()]

    def read_block(self, block: int, memory: BlockMemory | None = None) -> Block:
        """Read the used rows of all arrays of a block. Several threads may call this at once.

        Args:
            block: Number of the block.
            memory: Buffers to read into, which are overwritten; allocated if None.

        Raises:
            CacheError: An object is missing, or a checksum does not match.
        """
        pairs = self.plan.pairs_of(block)
        lengths = self.plan.response_length[pairs.start : pairs.stop].reshape(-1)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        rows = _read_rows(
            self._objects,
            self._arrays,
            block,
            int(offsets[-1]),
            self._commits[block].objects,
            memory,
        )
        return Block(
            number=block,
            pairs=pairs,
            offsets=offsets,
            rows=restore(rows, self.manifest.states.dtype),
        )

    def read_unembedding(self) -> dict[str, NDArray[Any]]:
        """Read `weight` [vocab, hidden] and, if there is one, `bias` [vocab], as stored."""
        paths = [path for path in self._arrays if path.startswith("unembedding/")]
        return {path.removeprefix("unembedding/"): self._read_whole(path) for path in paths}

    def read_sources(self) -> NDArray[np.uint16]:
        """Read the index of each pair's data set in the manifest, uint16 [pairs]."""
        return self._read_whole("pairs/source")

    def read_source_rows(self) -> NDArray[np.int64]:
        """Read each pair's row in its data set, int64 [pairs]."""
        return self._read_whole("pairs/source_row")

    def stored_bytes(self) -> int:
        """Return the total size of the cache's objects, in bytes."""
        return sum(self._sizes.values())

    def _read_whole(self, path: str) -> NDArray[Any]:
        return read_array(self._objects, self._arrays[path], self._static)


def require_static_objects(
    objects: ObjectStore, manifest: Manifest, sizes: Mapping[str, int]
) -> StaticObjectsRecord:
    """Check that all static objects of a cache exist and have their full size.

    Raises:
        CacheError: An object is missing or has another size.
    """
    record = read_static_record(objects, manifest.identity())
    if lost := object_problems(record.objects, sizes):
        raise CacheError(
            f"{objects.location}: damaged:{listed(lost)}\nRun the same `mav extract` "
            f"command again; it writes these objects again."
        )
    return record


def _read_rows(
    objects: ObjectStore,
    arrays: Mapping[str, ArrayLayout],
    block: int,
    tokens: int,
    records: Mapping[str, ObjectRecord],
    memory: BlockMemory | None,
) -> dict[str, NDArray[Any]]:
    """Read the used rows of all arrays of a block.

    Raises:
        CacheError: An object is damaged; names it.
    """
    return {
        path: _decode(
            objects,
            layout,
            block,
            layout.rows_in_block(tokens),
            records,
            _REMEDY.format(location=objects.location),
            memory,
        )
        for path, layout in arrays.items()
        if layout.spec.kind == "block"
    }


def read_array(
    objects: ObjectStore, layout: ArrayLayout, record: StaticObjectsRecord
) -> NDArray[Any]:
    """Read all of an array of the plan or the unembedding.

    Raises:
        CacheError: An object is damaged; names it.
    """
    parts = [
        _decode(
            objects,
            layout,
            number,
            min(layout.shard[0], layout.shape[0] - number * layout.shard[0]),
            record.objects,
            _REMEDY.format(location=objects.location),
        )
        for number in range(layout.shards)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def require_complete(location: str, manifest: Manifest, committed: int) -> None:
    """Raise `CacheIncompleteError` unless every block is committed."""
    if manifest.complete and committed == manifest.plan.blocks:
        return
    raise CacheIncompleteError(
        f"{location}: incomplete, {committed} of {manifest.plan.blocks} blocks are written. "
        f"Run the same `mav extract` command again; it continues where it stopped."
    )


def listed(problems: Sequence[object]) -> str:
    """Return the first problems, one per line, and the number of the others."""
    named = "".join(f"\n  - {problem}" for problem in problems[:_MOST_NAMED])
    more = len(problems) - _MOST_NAMED
    return named + (f"\n  and {more} more" if more > 0 else "")


def _decode(
    objects: ObjectStore,
    layout: ArrayLayout,
    number: int,
    rows: int,
    records: Mapping[str, ObjectRecord],
    remedy: str,
    memory: BlockMemory | None = None,
) -> NDArray[Any]:
    key = shard_key(layout, number)
    if key not in records or records[key].checksums is None:
        raise CacheError(f"{objects.location}/{STATIC_RECORD}: it has no record of {key}. {remedy}")
    checksums = records[key].checksums
    assert checksums is not None
    size = shard_memory(layout, rows)
    buffer = None if memory is None else memory.buffer(layout.spec.path, size)
    try:
        return read_shard(layout, objects, key, rows, checksums, buffer)
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(f"{objects.location}/{key}: damaged ({error}). {remedy}") from error
