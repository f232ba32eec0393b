"""Writing a cache: create or resume, one block at a time, then complete."""

import contextlib
import dataclasses
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray

from mav.cache_schema.arrays import layouts, shard_key
from mav.cache_schema.choices import StoredDtype
from mav.cache_schema.creation import create_layout, is_part
from mav.cache_schema.errors import CacheBusyError, CacheError, MismatchError
from mav.cache_schema.manifest import (
    Manifest,
    differences,
)
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.reader import require_complete, require_layout
from mav.cache_schema.records import (
    ClaimRecord,
    CommitRecord,
    LayoutRecord,
    commit_key,
    commit_problems,
    content_digest,
    encode_record,
    lost_blocks,
    object_problems,
    object_record,
    own_keys,
    read_block_record,
    read_commits,
    read_layout,
)
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.static_objects import static_objects
from mav.cache_schema.storage.base import ConflictError, ETag, ObjectStore, put, replace
from mav.cache_schema.storage.lock import LOCK, require_held

_NOT_COMPARED: Final = (
    # Progress, and what measured noise can change.
    "created_by",
    "checks",
    # Asked about by itself; what is recorded of it says nothing of the values.
    "states.computed_in",
    "base.parameters",
    "complete",
    # Names of things whose contents are compared by digest.
    "base.id",
    "base.revision",
    "base.gguf_file",
    *(f"data.sources[].{name}" for name in ("id", "data_dir", "split", "limit")),
)
"""Manifest fields that may differ between the run that began a cache and the one that resumes."""


def require_same(location: str, stored: Manifest, asked: Manifest) -> None:
    """Refuse to go on with a cache that another command began.

    Args:
        location: The cache.
        stored: Its manifest.
        asked: The manifest of what is asked for.

    Raises:
        MismatchError: Naming each difference.
    """
    found = {
        path: text
        for path, text in differences(stored, asked).items()
        if not re.sub(r"\[\d+\]", "[]", path).startswith(_NOT_COMPARED)
    }
    if found:
        listed = "".join(f"\n  - {path}: {text}" for path, text in found.items())
        raise MismatchError(
            f"{location}: this cache was begun with other settings:{listed}\n"
            f"{_former_revision(stored, asked)}"
            f"Give the settings it was begun with, or another `output`."
        )


def _former_revision(stored: Manifest, asked: Manifest) -> str:
    """Return how to name the base that a cache was begun with, where its branch has moved."""
    before, now = stored.base.revision, asked.base.revision
    if stored.base.id != asked.base.id or not before or before == now:
        return ""
    return f"The base is at commit {now} now, and was at {before}: `revision` {before} names it.\n"


class CacheWriter:
    """An open cache that blocks are added to.

    Writers of several processes may be open at once, each with blocks of its own; the first process
    of the run holds the lock and alone creates, takes stock and completes.

    Attributes:
        manifest: The stored manifest.
    """

    def __init__(self, objects: ObjectStore, run: str) -> None:
        """Open a cache.

        Args:
            objects: Where it is.
            run: Id of the run that holds its lock; see `run_lock`.
        """
        self._objects = objects
        self._run = run
        self.manifest = read_manifest(objects)
        self._layouts = layouts(self.manifest)

    @staticmethod
    def create(
        objects: ObjectStore,
        run: str,
        manifest: Manifest,
        plan: BlockPlan,
        pair_columns: Mapping[str, NDArray[Any]],
        unembedding: Mapping[str, NDArray[Any]],
    ) -> "CacheWriter":
        """Lay out a new cache: metadata, plan and unembedding, then the root, which makes it one.

        Args:
            objects: Where to; it must not exist or be empty.
            run: Id of the run that holds its lock.
            manifest: Its manifest, with `complete` unset.
            plan: The block plan.
            pair_columns: See `static_objects`.
            unembedding: See `static_objects`.
        """
        create_layout(objects, run, manifest, plan, pair_columns, unembedding)
        return CacheWriter(objects, run)

    def restore_layout(
        self,
        plan: BlockPlan,
        pair_columns: Mapping[str, NDArray[Any]],
        unembedding: Mapping[str, NDArray[Any]],
    ) -> list[str]:
        """Write again what the cache was created with and has lost since.

        Only for the first process of a run, before others write.

        Args:
            plan: The block plan.
            pair_columns: See `static_objects`.
            unembedding: See `static_objects`.

        Returns:
            The keys of the objects that were written.

        Raises:
            CacheError: An object cannot be made as it was.
        """
        require_held(self._objects, self._run)
        sizes = self._objects.sizes()
        recorded = read_layout(self._objects, self.manifest.identity()).objects
        lost = [problem.key for problem in object_problems(recorded, sizes)]
        if not lost:
            return []
        for key, data, record in static_objects(self.manifest, plan, pair_columns, unembedding):
            if key not in lost:
                continue
            if record != recorded[key]:
                raise CacheError(
                    f"{self._objects.location}/{key}: lost, and this program makes it with other "
                    f"bytes than it had. Use the versions the cache names as created_by "
                    f"(`mav inspect`), or remove the cache and extract again."
                )
            replace(self._objects, key, data)
        return lost

    def missing(self) -> list[int]:
        """Return the blocks that are yet to be written, having made sure of all others.

        Commits that no longer speak the truth are withdrawn, and what killed writers left is
        removed. Only for the first process of a run, before others write.

        Raises:
            CacheError: What the cache was created with is damaged.
        """
        require_held(self._objects, self._run)
        self._objects.remove_temporaries()
        sizes = self._objects.sizes()
        layout = require_layout(self._objects, self.manifest, sizes)
        self._remove_strays(layout, sizes)
        commits = read_commits(self._objects, self.manifest, sizes)
        lost = lost_blocks(self._objects, commits, self._layouts, sizes)
        for block in (*lost, *commits.damaged):
            self._withdraw(block)
        blocks = range(self.manifest.plan.blocks)
        return [block for block in blocks if block not in commits.records or block in lost]

    def write_block(self, block: int, pairs: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Write one block and commit it; it is committed once, whoever else tries.

        Args:
            block: Number of the block.
            pairs: Pairs in it, for the record.
            rows: For every array of kind `block`, its used rows as stored, [n, ...].

        Raises:
            CacheBusyError: Another run has taken the cache or the block over.
        """
        wanted = {path for path, layout in self._layouts.items() if layout.spec.kind == "block"}
        assert set(rows) == wanted, f"got arrays {sorted(rows)}, expected {sorted(wanted)}"
        require_held(self._objects, self._run)
        attempt = uuid.uuid4().hex
        claim = self._claim(block, attempt)
        if claim is None:
            return
        records = {}
        for path, values in rows.items():
            layout = self._layouts[path]
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
        """Have the manifest name a type the base computes in from now on, if it does not yet.

        Only for the first process of a run, before others write.
        """
        states = self.manifest.states
        if dtype in states.compute_dtypes:
            return
        require_held(self._objects, self._run)
        both = dataclasses.replace(states, computed_in=(*states.compute_dtypes, dtype))
        self.manifest = dataclasses.replace(self.manifest, states=both)
        replace(self._objects, ROOT, encode_root(self.manifest))

    def complete(self) -> None:
        """Mark the cache complete.

        Raises:
            CacheIncompleteError: A block is not committed.
        """
        require_held(self._objects, self._run)
        commits = read_commits(self._objects, self.manifest, self._objects.sizes())
        require_all = dataclasses.replace(self.manifest, complete=True)
        require_complete(self._objects.location, require_all, len(commits.records))
        self.manifest = dataclasses.replace(self.manifest, complete=True)
        replace(self._objects, ROOT, encode_root(self.manifest))

    def _remove_strays(self, layout: LayoutRecord, sizes: Mapping[str, int]) -> None:
        """Remove what killed creations of caches of another kind left."""
        own = {ROOT, LOCK, *own_keys(layout, self._layouts, self.manifest.plan.blocks)}
        for key in sizes:
            if key not in own and is_part(key):
                require_held(self._objects, self._run)
                self._objects.delete(key)

    def _withdraw(self, block: int) -> None:
        """Make a claim of a commit that does not speak the truth."""
        key = commit_key(block)
        version = self._objects.version(key)
        record = self._committed(block)
        if record is not None:
            seen = {name: self._objects.version(name) for name in record.objects}
            sizes = {name: found.size for name, found in seen.items() if found}
            if not commit_problems(record, self._layouts, sizes):
                return  # another writer has mended it since
        claim = encode_record(ClaimRecord(block=block, attempt=uuid.uuid4().hex))
        with contextlib.suppress(ConflictError):
            self._objects.write(key, claim, version)

    def _claim(self, block: int, attempt: str) -> ETag | None:
        """Take a block over from whoever had it; None if it is committed already."""
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
            # Ours if only the answer was lost; another's if it took over and was faster.
            if self._committed(record.block) is None:
                raise self._lost(record.block) from error
        except OSError:
            self._objects.rollback(key, data)
            raise

    def _committed(self, block: int) -> CommitRecord | None:
        try:
            found = read_block_record(self._objects, block, self.manifest.identity())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, CommitRecord) else None

    def _lost(self, block: int) -> CacheBusyError:
        return CacheBusyError(
            f"{self._objects.location}: another run has taken over block {block}. This run stops; "
            f"what it committed is kept."
        )
