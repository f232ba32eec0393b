"""Reading a cache: whole blocks, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.errors import CacheError, CacheIncompleteError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.quantization import restore
from mav.cache_schema.records import (
    LAYOUT,
    LayoutRecord,
    ObjectRecord,
    lost_blocks,
    object_problems,
    read_commits,
    read_layout,
)
from mav.cache_schema.root import read_manifest
from mav.cache_schema.shards import read_shard, shard_memory
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store

_MOST_NAMED: Final = 10
_MENDED: Final = (
    "`mav verify --repair {location}` removes what is damaged, and the extraction command then "
    "writes it anew."
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The used rows of one block.

    Attributes:
        number: Its number.
        pairs: Its pairs, as indices into the cache's pairs.
        offsets: int64 [2 * pairs + 1], first row of each answer inside the block: chosen and
            rejected of the first pair, of the second, and so on; then the number of rows.
        rows: Array path -> values [rows, ...] as stored; quantized states as what they stand for.
    """

    number: int
    pairs: range
    offsets: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]


class BlockMemory:
    """Memory that a block is read to, for use by one block after another.

    Memory that is new to a process takes longer to make than to fill.
    """

    def __init__(self) -> None:
        self._room: dict[str, NDArray[np.uint8]] = {}

    def room(self, path: str, size: int) -> NDArray[np.uint8]:
        """Return at least so many bytes for an array; those it returned before are gone."""
        if len(self._room.get(path, ())) < size:
            self._room[path] = np.empty(size, np.uint8)
        return self._room[path]


class CacheReader:
    """A complete cache, opened for reading.

    Attributes:
        location: Folder or URL of the cache.
        manifest: What it holds.
        plan: Where each pair lies.
        pair_id: uint64 [pairs].
        prompt_id: uint64 [pairs].
        set_apart: bool [pairs], which came from a data set that is for evaluation alone.
    """

    def __init__(self, location: str | Path) -> None:
        """Open a cache and check that every object of every block is there in full size.

        Raises:
            CacheError: It is missing, damaged, or of another format version.
            CacheIncompleteError: Its extraction has not finished.
        """
        self._objects = open_object_store(location)
        self.location = self._objects.location
        self.manifest = read_manifest(self._objects)
        self._sizes = self._objects.sizes()
        self._layouts = layouts(self.manifest)
        self._layout = require_layout(self._objects, self.manifest, self._sizes)
        commits = read_commits(self._objects, self.manifest, self._sizes)
        problems = [*commits.damaged.values()]
        if not problems:
            require_complete(self.location, self.manifest, len(commits.records))
        lost = lost_blocks(self._objects, commits, self._layouts, self._sizes)
        problems += [problem for found in lost.values() for problem in found]
        if problems:
            raise CacheError(
                f"{self.location}: {len(problems)} damaged objects:{listed(problems)}\nRun the "
                f"same `mav extract` command again; damaged blocks are computed again."
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
        self.set_apart: NDArray[np.bool_] = held_out[self.read_sources()]

    def read_block(self, block: int, memory: BlockMemory | None = None) -> Block:
        """Read the used rows of all arrays of a block. May be called from several threads.

        Args:
            block: Its number.
            memory: Where to; what it held before is written over. New memory if None.

        Raises:
            CacheError: A checksum does not match.
        """
        pairs = self.plan.pairs_of(block)
        lengths = self.plan.response_length[pairs.start : pairs.stop].reshape(-1)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        rows = _read_rows(
            self._objects,
            self._layouts,
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
        """Read `weight` [vocab, hidden] and, where there is one, `bias` [vocab], as stored."""
        paths = [path for path in self._layouts if path.startswith("unembedding/")]
        return {path.removeprefix("unembedding/"): self._read_whole(path) for path in paths}

    def read_sources(self) -> NDArray[np.uint16]:
        """Read which of the manifest's data sets each pair came from, uint16 [pairs]."""
        return self._read_whole("pairs/source")

    def read_source_rows(self) -> NDArray[np.int64]:
        """Read the row of the data set that each pair came from, int64 [pairs]."""
        return self._read_whole("pairs/source_row")

    def stored_bytes(self) -> int:
        """Return the bytes of all objects of the cache."""
        return sum(self._sizes.values())

    def _read_whole(self, path: str) -> NDArray[Any]:
        return read_array(self._objects, self._layouts[path], self._layout)


def require_layout(
    objects: ObjectStore, manifest: Manifest, sizes: Mapping[str, int]
) -> LayoutRecord:
    """Check that all a cache was created with is still there in full size.

    Raises:
        CacheError: Something is missing or of another size.
    """
    record = read_layout(objects, manifest.identity())
    if lost := object_problems(record.objects, sizes):
        raise CacheError(
            f"{objects.location}: damaged:{listed(lost)}\nRun the same `mav extract` "
            f"command again; it writes them again."
        )
    return record


def _read_rows(
    objects: ObjectStore,
    every: Mapping[str, ArrayLayout],
    block: int,
    tokens: int,
    records: Mapping[str, ObjectRecord],
    memory: BlockMemory | None,
) -> dict[str, NDArray[Any]]:
    """Read the used rows of all per-token arrays of a block.

    Raises:
        CacheError: Naming the object that is damaged.
    """
    return {
        path: _decode(
            objects,
            layout,
            block,
            layout.rows_in_block(tokens),
            records,
            _MENDED.format(location=objects.location),
            memory,
        )
        for path, layout in every.items()
        if layout.spec.kind == "block"
    }


def read_array(objects: ObjectStore, layout: ArrayLayout, record: LayoutRecord) -> NDArray[Any]:
    """Read an array of the plan or the unembedding whole.

    Raises:
        CacheError: Naming the object that is damaged.
    """
    parts = [
        _decode(
            objects,
            layout,
            number,
            min(layout.shard[0], layout.shape[0] - number * layout.shard[0]),
            record.objects,
            _MENDED.format(location=objects.location),
        )
        for number in range(layout.shards)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def require_complete(location: str, manifest: Manifest, committed: int) -> None:
    """Raise `CacheIncompleteError`, with the remedy, unless every block is committed."""
    if manifest.complete and committed == manifest.plan.blocks:
        return
    raise CacheIncompleteError(
        f"{location}: incomplete, {committed} of {manifest.plan.blocks} blocks are written. "
        f"Run the same `mav extract` command again; it goes on where it stopped."
    )


def listed(problems: Sequence[object]) -> str:
    """Return the first problems, one per line, and how many more there are."""
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
        raise CacheError(f"{objects.location}/{LAYOUT}: it does not name {key}. {remedy}")
    checksums = records[key].checksums
    assert checksums is not None
    room = None if memory is None else memory.room(layout.spec.path, shard_memory(layout, rows))
    try:
        return read_shard(layout, objects, key, rows, checksums, room)
    except (FileNotFoundError, ValueError) as error:
        raise CacheError(f"{objects.location}/{key}: damaged ({error}). {remedy}") from error
