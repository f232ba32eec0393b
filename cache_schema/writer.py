"""Writing a cache: create it or resume it, write block by block, mark it complete."""

import contextlib
import dataclasses
import uuid
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from mav.cache_schema.arrays import layouts, shard_key
from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.commits import (
    commit_problems,
    lost_blocks,
    object_problems,
    own_keys,
    read_commits,
)
from mav.cache_schema.creation import create_cache, is_cache_key
from mav.cache_schema.errors import CacheBusyError, CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.reader import require_complete, require_static_objects
from mav.cache_schema.records import (
    ClaimRecord,
    CommitRecord,
    StaticObjectsRecord,
    commit_key,
    content_digest,
    encode_record,
    object_record,
    read_block_record,
    read_static_record,
)
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.static_objects import static_objects
from mav.cache_schema.storage.base import ConflictError, ETag, ObjectStore, put, replace
from mav.cache_schema.storage.lock import LOCK, require_held


class CacheWriter:
    """An open cache that blocks are added to.

    Several processes may each have a writer, for different blocks. The first process of the run
    holds the lock; it alone creates the cache, checks existing blocks and marks it complete.

    Attributes:
        manifest: The stored manifest.
    """

    def __init__(self, objects: ObjectStore, run: str) -> None:
        """Open a cache.

        Args:
            objects: The store that holds it.
            run: Id of the run that holds its lock; see `run_lock`.
        """
        self._objects = objects
        self._run = run
        self.manifest = read_manifest(objects)
        self._arrays = layouts(self.manifest)

    @staticmethod
    def create(
        objects: ObjectStore,
        run: str,
        manifest: Manifest,
        plan: BlockPlan,
        pair_columns: Mapping[str, NDArray[Any]],
        unembedding: Mapping[str, NDArray[Any]],
    ) -> "CacheWriter":
        """Create a cache: its static objects, and last its root.

        Args:
            objects: The store; no objects may exist in it.
            run: Id of the run that holds its lock.
            manifest: Its manifest, with `complete` unset.
            plan: The block plan.
            pair_columns: See `static_objects`.
            unembedding: See `static_objects`.
        """
        create_cache(objects, run, manifest, plan, pair_columns, unembedding)
        return CacheWriter(objects, run)

    def restore_static_objects(
        self,
        plan: BlockPlan,
        pair_columns: Mapping[str, NDArray[Any]],
        unembedding: Mapping[str, NDArray[Any]],
    ) -> list[str]:
        """Write static objects again that are missing or truncated.

        Only the first process of a run may call this, before others write.

        Args:
            plan: The block plan.
            pair_columns: See `static_objects`.
            unembedding: See `static_objects`.

        Returns:
            Keys of the objects that were written.

        Raises:
            CacheError: An object cannot be written with the bytes it had.
        """
        require_held(self._objects, self._run)
        sizes = self._objects.sizes()
        recorded = read_static_record(self._objects, self.manifest.identity()).objects
        lost = [problem.key for problem in object_problems(recorded, sizes)]
        if not lost:
            return []
        for key, data, record in static_objects(self.manifest, plan, pair_columns, unembedding):
            if key not in lost:
                continue
            if record != recorded[key]:
                raise CacheError(
                    f"{self._objects.location}/{key}: lost, and this program would write it with "
                    f"other bytes than it had. Use the versions that `mav inspect` shows as "
                    f"created_by, or remove the cache and extract again."
                )
            replace(self._objects, key, data)
        return lost

    def missing(self) -> list[int]:
        """Return the blocks that have to be written, after checking all others.

        Blocks with missing or truncated objects or an unreadable record lose their commit, and
        what killed writers left is removed. Only the first process of a run may call this, before
        others write.

        Raises:
            CacheError: A static object is damaged.
        """
        require_held(self._objects, self._run)
        self._objects.remove_temporaries()
        sizes = self._objects.sizes()
        static = require_static_objects(self._objects, self.manifest, sizes)
        self._remove_unknown(static, sizes)
        commits = read_commits(self._objects, self.manifest, sizes)
        lost = lost_blocks(self._objects, commits, self._arrays, sizes)
        for block in (*lost, *commits.damaged):
            self._revert_to_claim(block)
        blocks = range(self.manifest.plan.blocks)
        return [block for block in blocks if block not in commits.records or block in lost]

    def write_block(self, block: int, pairs: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Write a block and commit it, unless another writer has committed it.

        Args:
            block: Number of the block.
            pairs: Number of pairs in it, for the record.
            rows: The used rows of every array of kind `block`, as stored, [n, ...].

        Raises:
            CacheBusyError: Another run has taken over the cache or the block.
        """
        paths = {path for path, layout in self._arrays.items() if layout.spec.kind == "block"}
        assert set(rows) == paths, f"got arrays {sorted(rows)}, expected {sorted(paths)}"
        require_held(self._objects, self._run)
        attempt = uuid.uuid4().hex
        claim = self._claim(block, attempt)
        if claim is None:
            return
        records = {}
        for path, values in rows.items():
            layout = self._arrays[path]
            shard = encode_shard(layout, values)
            key = shard_key(layout, block)
            put(self._objects, key, shard.data.data, lambda: self._require_claim(block, claim))
            records[key] = object_record(shard.data.data, shard)
        self._commit(
            CommitRecord(
                block=block,
                pairs=pairs,
                tokens=len(rows["labels"]),
                attempt=attempt,
                cache=self.manifest.identity(),
                content=content_digest(rows),
                objects=records,
            ),
            claim,
        )

    def record_compute_dtype(self, dtype: StoredDtype) -> None:
        """Add a type the base computes in to the manifest, unless it is there.

        Only the first process of a run may call this, before others write.
        """
        states = self.manifest.states
        if dtype in states.compute_dtypes:
            return
        require_held(self._objects, self._run)
        extended = dataclasses.replace(states, computed_in=(*states.compute_dtypes, dtype))
        self.manifest = dataclasses.replace(self.manifest, states=extended)
        replace(self._objects, ROOT, encode_root(self.manifest))

    def complete(self) -> None:
        """Mark the cache complete.

        Raises:
            CacheIncompleteError: A block is not committed.
        """
        require_held(self._objects, self._run)
        commits = read_commits(self._objects, self.manifest, self._objects.sizes())
        completed = dataclasses.replace(self.manifest, complete=True)
        require_complete(self._objects.location, completed, len(commits.records))
        self.manifest = completed
        replace(self._objects, ROOT, encode_root(self.manifest))

    def _remove_unknown(self, static: StaticObjectsRecord, sizes: Mapping[str, int]) -> None:
        """Remove objects that the killed creation of a cache with other arrays left."""
        own = {ROOT, LOCK, *own_keys(static, self._arrays, self.manifest.plan.blocks)}
        for key in sizes:
            if key not in own and is_cache_key(key):
                require_held(self._objects, self._run)
                self._objects.delete(key)

    def _revert_to_claim(self, block: int) -> None:
        """Replace a block's damaged commit by a claim, so that it counts as not written."""
        key = commit_key(block)
        version = self._objects.version(key)
        record = self._committed(block)
        if record is not None:
            etags = {name: self._objects.version(name) for name in record.objects}
            sizes = {name: etag.size for name, etag in etags.items() if etag}
            if not commit_problems(record, self._arrays, sizes):
                return  # another writer has written the block again since
        claim = encode_record(ClaimRecord(block=block, attempt=uuid.uuid4().hex))
        with contextlib.suppress(ConflictError):
            self._objects.write(key, claim, version)

    def _claim(self, block: int, attempt: str) -> ETag | None:
        """Claim a block, replacing any other claim; None if it is committed already."""
        key = commit_key(block)
        data = encode_record(ClaimRecord(block=block, attempt=attempt))
        while True:
            version = self._objects.version(key)
            if version is not None and self._committed(block) is not None:
                return None
            try:
                return self._objects.write(key, data, version)
            except ConflictError:
                continue

    def _require_claim(self, block: int, claim: ETag) -> None:
        if self._objects.version(commit_key(block)) != claim:
            raise self._lost(block)

    def _commit(self, record: CommitRecord, claim: ETag) -> None:
        key, data = commit_key(record.block), encode_record(record)
        try:
            self._objects.write(key, data, claim)
        except ConflictError as error:
            # The commit is ours if only the response was lost, else another writer's.
            if self._committed(record.block) is None:
                raise self._lost(record.block) from error
        except OSError:
            self._objects.rollback(key, data)
            raise

    def _committed(self, block: int) -> CommitRecord | None:
        try:
            record = read_block_record(self._objects, block, self.manifest.identity())
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, CommitRecord) else None

    def _lost(self, block: int) -> CacheBusyError:
        return CacheBusyError(
            f"{self._objects.location}: another run has taken over block {block}. This run stops; "
            f"what it committed is kept."
        )
