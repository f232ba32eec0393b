"""Writing a cache: create or resume, one block at a time, then complete."""

import dataclasses
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from cache_schema.arrays import ArrayLayout, layouts, shard_key
from cache_schema.errors import CacheError, MismatchError
from cache_schema.manifest import ATTRIBUTE, Manifest, differences
from cache_schema.plan import BlockPlan
from cache_schema.store import (
    COMMITS,
    CommitRecord,
    DurableStore,
    LayoutRecord,
    commit_path,
    commit_problems,
    layout_path,
    open_root,
    read_commits,
    require_layout,
    sync_directory,
    write_record,
)

_NOT_COMPARED: Final = (
    # Progress, and what measured noise can change.
    "created_by",
    "checks",
    "complete",
    # Names of things whose contents are compared by digest.
    "base.id",
    "base.revision",
    "base.gguf_file",
    "data.id",
    "data.data_dir",
    "data.split",
    "data.limit",
)
"""Manifest fields that may differ between the run that began a cache and the one that resumes."""


def require_free(root: Path) -> None:
    """Refuse a place that holds something other than a Zarr group.

    Raises:
        CacheError: It is a file, or a folder with other things in it.
    """
    taken = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if taken and not (root / "zarr.json").exists():
        raise CacheError(
            f"{root}: exists and is not a MAV cache. Name another --output, or remove it."
        )


class CacheWriter:
    """An open cache that blocks are added to.

    Attributes:
        root: Folder of the cache.
        manifest: The stored manifest.
        committed: Blocks that are written and need not be computed again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._store = DurableStore(root)
        self._group, self.manifest = open_root(root, self._store)
        require_layout(root)
        self._layouts = layouts(self.manifest)
        self._lock = threading.Lock()
        self.committed: set[int] = set()
        for record in read_commits(root):
            if commit_problems(root, record, self._layouts):
                # The block is simply computed again: its record no longer speaks the truth.
                commit_path(root, record.block).unlink()
            else:
                self.committed.add(record.block)

    @staticmethod
    def create(
        root: Path,
        manifest: Manifest,
        plan: BlockPlan,
        pair_columns: Mapping[str, NDArray[Any]],
        unembedding: Mapping[str, NDArray[Any]],
    ) -> "CacheWriter":
        """Lay out a new cache: metadata, plan and unembedding, all or nothing.

        Args:
            root: Folder to make; it must not exist or be empty.
            manifest: Its manifest, with `complete` unset.
            plan: The block plan.
            pair_columns: `pair_id`, `prompt_id` and `source_row`, each [pairs].
            unembedding: `weight` [vocab, hidden] and `bias` [vocab] as stored; empty unless the
                encoding is `factored`.
        """
        assert not manifest.complete
        require_free(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        store = DurableStore(building)
        try:
            building.chmod(0o755)
            _lay_out(store, manifest, plan, pair_columns, unembedding)
            building.replace(root)
        except BaseException:
            # Where one write fails, zarr's other writes of the same array are still under way.
            store.stop()
            shutil.rmtree(building, ignore_errors=True)
            raise
        sync_directory(root.parent)
        return CacheWriter(root)

    def require_same(self, asked: Manifest) -> None:
        """Refuse to go on with a cache that another command began.

        Raises:
            MismatchError: Naming each difference.
        """
        found = {
            path: text
            for path, text in differences(self.manifest, asked).items()
            if not path.startswith(_NOT_COMPARED)
        }
        if found:
            listed = "".join(f"\n  - {path}: {text}" for path, text in found.items())
            raise MismatchError(
                f"{self.root}: this cache was begun with other settings:{listed}\n"
                f"Give the settings it was begun with, or another --output."
            )

    def write_block(self, block: int, pairs: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Write one block and commit it. Safe to call from another thread than the creator's.

        Args:
            block: Number of the block.
            pairs: Pairs in it, for the record.
            rows: For every array of kind `block`, its used rows as stored, [n, ...].
        """
        wanted = {path for path, layout in self._layouts.items() if layout.spec.kind == "block"}
        assert set(rows) == wanted, f"got arrays {sorted(rows)}, expected {sorted(wanted)}"
        with self._lock:
            self._store.written.clear()
            for path, values in rows.items():
                layout = self._layouts[path]
                assert values.dtype == np.dtype(layout.dtype), (path, values.dtype)
                shard = np.zeros(layout.shard, values.dtype)
                shard[: len(values)] = values
                first = block * layout.shard[0]
                # What a killed run left there is not read, nor trusted, but gone.
                (self.root / shard_key(layout, block)).unlink(missing_ok=True)
                # An all-zero chunk must be on disk too, or it could not be told from a lost one.
                array = self._group[path]
                assert isinstance(array, zarr.Array)
                array = array.with_config({"write_empty_chunks": True})
                array[first : first + layout.shard[0]] = shard
            written = {shard_key(self._layouts[path], block) for path in rows}
            assert set(self._store.written) == written, sorted(self._store.written)
            record = CommitRecord(
                block=block,
                pairs=pairs,
                tokens=len(rows["labels"]),
                shards=dict(self._store.written),
            )
            write_record(commit_path(self.root, block), record)
            self.committed.add(block)

    def complete(self) -> None:
        """Mark the cache complete; every block must be committed."""
        assert len(self.committed) == self.manifest.plan.blocks
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        self._group.attrs[ATTRIBUTE] = self.manifest.to_json()


def _lay_out(
    store: DurableStore,
    manifest: Manifest,
    plan: BlockPlan,
    pair_columns: Mapping[str, NDArray[Any]],
    unembedding: Mapping[str, NDArray[Any]],
) -> None:
    group = zarr.create_group(store, attributes={ATTRIBUTE: manifest.to_json()})
    group.create_group(COMMITS)
    group.create_group("pairs")
    known: dict[str, NDArray[Any]] = {
        "pairs/response_start": plan.response_start,
        "pairs/response_length": plan.response_length,
        "pairs/block_start": plan.block_start,
        **{f"pairs/{name}": column for name, column in pair_columns.items()},
        **{f"unembedding/{name}": values for name, values in unembedding.items()},
    }
    if unembedding:
        group.create_group("unembedding")
    expected = layouts(manifest)
    assert set(known) == {path for path, lay in expected.items() if lay.spec.kind != "block"}
    for path, layout in expected.items():
        array = _create_array(group, path, layout, manifest)
        if path in known:
            assert known[path].shape == layout.shape, (path, known[path].shape, layout.shape)
            # Zarr would convert numbers, and bfloat16 is stored as bits.
            assert known[path].dtype == np.dtype(layout.dtype), (path, known[path].dtype)
            array[...] = known[path]
    # The root's description holds the manifest, which changes when the cache is complete.
    shards = {key: record for key, record in store.written.items() if key != "zarr.json"}
    write_record(layout_path(store.root), LayoutRecord(shards=shards))


def _create_array(
    group: zarr.Group, path: str, layout: ArrayLayout, manifest: Manifest
) -> zarr.Array[Any]:
    # Checksums on every chunk and on the shard index: a flipped bit is an error, never data.
    raw, checksum = BytesCodec(endian="little"), Crc32cCodec()
    true_type = manifest.states.dtype if layout.spec.dtype == "states" else layout.dtype
    sharded = layout.spec.kind == "block"
    serializer = ShardingCodec(chunk_shape=layout.chunk, codecs=[raw, checksum]) if sharded else raw
    return group.create_array(
        path,
        shape=layout.shape,
        chunks=layout.shard,
        dtype=layout.dtype,
        serializer=serializer,
        compressors=() if sharded else (checksum,),
        filters=(),
        fill_value=0,
        dimension_names=layout.spec.dims,
        attributes={"meaning": layout.spec.meaning, "element_type": true_type},
        config={"write_empty_chunks": True},
    )
