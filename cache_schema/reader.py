"""Reading a cache: whole blocks, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from cache_schema.arrays import layouts
from cache_schema.errors import CacheError
from cache_schema.plan import BlockPlan
from cache_schema.store import (
    commit_path,
    commit_problems,
    open_root,
    read_commits,
    require_complete,
    require_layout,
    stored_bytes,
)

_MOST_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True)
class Block:
    """The used rows of one block.

    Attributes:
        number: Its number.
        pairs: Its pairs, as indices into the cache's pairs.
        offsets: int64 [2 * pairs + 1], first row of each answer inside the block: chosen and
            rejected of the first pair, of the second, and so on; then the number of rows.
        rows: Array path -> values as stored, [rows, ...].
    """

    number: int
    pairs: range
    offsets: NDArray[np.int64]
    rows: dict[str, NDArray[Any]]


class CacheReader:
    """A complete cache, opened for reading.

    Attributes:
        root: Folder of the cache.
        manifest: What it holds.
        plan: Where each pair lies.
        pair_id: uint64 [pairs].
        prompt_id: uint64 [pairs].
    """

    def __init__(self, root: str | Path) -> None:
        """Open a cache and check that every shard of every block is there in full size.

        Raises:
            CacheError: It is missing, damaged, or of another format version.
            CacheIncompleteError: Its extraction has not finished.
        """
        self.root = Path(root)
        self._group, self.manifest = open_root(self.root)
        require_layout(self.root)
        self._block_paths = [
            path for path, lay in layouts(self.manifest).items() if lay.spec.kind == "block"
        ]
        self._check_shards()
        self.plan = BlockPlan(
            block_tokens=self.manifest.plan.block_tokens,
            block_start=self._read("pairs/block_start"),
            response_start=self._read("pairs/response_start"),
            response_length=self._read("pairs/response_length"),
        )
        self.pair_id: NDArray[np.uint64] = self._read("pairs/pair_id")
        self.prompt_id: NDArray[np.uint64] = self._read("pairs/prompt_id")

    def read_block(self, block: int) -> Block:
        """Read the used rows of all arrays of a block.

        Raises:
            CacheError: A chunk's checksum does not match.
        """
        pairs = self.plan.pairs_of(block)
        lengths = self.plan.response_length[pairs.start : pairs.stop].reshape(-1)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = self.plan.first_row(block)
        span = slice(first, first + int(offsets[-1]))
        return Block(
            number=block,
            pairs=pairs,
            offsets=offsets,
            rows={path: self._read(path, span) for path in self._block_paths},
        )

    def read_unembedding(self) -> dict[str, NDArray[Any]]:
        """Read `weight` [vocab, hidden] and, where there is one, `bias` [vocab], as stored."""
        paths = [path for path in layouts(self.manifest) if path.startswith("unembedding/")]
        return {path.removeprefix("unembedding/"): self._read(path) for path in paths}

    def stored_bytes(self) -> int:
        """Return the bytes of all files of the cache."""
        return stored_bytes(self.root)

    def _read(self, path: str, rows: slice = slice(None)) -> NDArray[Any]:
        try:
            array = self._group[path]
            assert isinstance(array, zarr.Array)
            return np.asarray(array[rows])
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            if path in self._block_paths:
                record = commit_path(self.root, rows.start // self.manifest.plan.block_tokens)
                remedy = f"Delete {record} and run the extraction command again; only its block"
                remedy += " is computed anew."
            else:
                remedy = "It is written once, so remove the cache and extract again."
            raise CacheError(
                f"{self.root}: {path}, rows {rows.start or 0} to {rows.stop or 'end'}: damaged "
                f"({error}). {remedy}"
            ) from error

    def _check_shards(self) -> None:
        commits = list(read_commits(self.root))
        require_complete(self.root, self.manifest, len(commits))
        described = layouts(self.manifest)
        problems = [
            problem
            for commit in commits
            for problem in commit_problems(self.root, commit, described)
        ]
        if problems:
            named = "".join(f"\n  - {problem}" for problem in problems[:_MOST_NAMED])
            more = len(problems) - _MOST_NAMED
            raise CacheError(
                f"{self.root}: {len(problems)} damaged shards:{named}"
                + (f"\n  and {more} more" if more > 0 else "")
                + "\nRun the same `mav extract` command again; damaged blocks are computed anew."
            )
