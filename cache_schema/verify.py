"""Verifying a cache: existence and size of every object, then every byte against its digests."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.commits import Problem, lost_blocks, object_problems, own_keys, read_commits
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.reader import read_array
from mav.cache_schema.records import (
    CommitRecord,
    ObjectRecord,
    StaticObjectsRecord,
    commit_key,
    content_digest,
    read_static_record,
)
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.shards import decode_shard
from mav.cache_schema.storage.base import ObjectStore, replace
from mav.cache_schema.storage.lock import LOCK, run_lock

_log = logging.getLogger(__name__)

_CHANGED: Final = "its SHA-256 is not the one recorded when it was written"

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of a verification.

    Attributes:
        location: The cache.
        full: Whether digests were compared, rather than sizes only.
        blocks: Blocks of the plan.
        committed: Blocks with a readable commit record.
        complete: Whether the manifest says that all blocks are written.
        objects: Objects that were checked.
        bytes: Bytes that were read and compared.
        problems: Damage: first that of static objects, then that of blocks, by number.
        unknown: Keys of objects that do not belong to the cache.
    """

    location: str
    full: bool
    blocks: int
    committed: int
    complete: bool
    objects: int
    bytes: int
    problems: list[Problem]
    unknown: list[str]

    @property
    def damaged_static(self) -> list[Problem]:
        """Problems of static objects: array descriptions, plan and unembedding."""
        return [problem for problem in self.problems if problem.block is None]

    @property
    def damaged_blocks(self) -> dict[int, list[Problem]]:
        """Block -> its problems."""
        by_block: dict[int, list[Problem]] = {}
        for problem in self.problems:
            if problem.block is not None:
                by_block.setdefault(problem.block, []).append(problem)
        return by_block

    @property
    def sound(self) -> bool:
        """Whether the cache can be trained from."""
        return self.complete and self.committed == self.blocks and not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        fields = dataclasses.asdict(self)
        del fields["problems"]
        blocks = self.damaged_blocks.items()
        return fields | {
            "damaged_blocks": {block: list(map(str, problems)) for block, problems in blocks},
            "damaged_static": list(map(str, self.damaged_static)),
            "sound": self.sound,
        }


def verify(
    objects: ObjectStore,
    *,
    full: bool,
    begin: Callable[[int], None] = lambda _: None,
    progress: Progress = lambda _: None,
) -> VerifyReport:
    """Check a cache, complete or not.

    Args:
        objects: The store that holds it.
        full: Whether to read everything and compare all digests, rather than sizes only.
        begin: Called once with the number of bytes that will be read.
        progress: Called with the size of each object after it was read.

    Raises:
        CacheError: There is no cache, or its root or the record of its static objects cannot be
            read, so the rest cannot be checked.
    """
    manifest = read_manifest(objects)
    sizes = objects.sizes()
    arrays = layouts(manifest)
    static = read_static_record(objects, manifest.identity())
    commits = read_commits(objects, manifest, sizes)
    damaged_static = object_problems(static.objects, sizes)
    damaged_blocks = {block: [problem] for block, problem in commits.damaged.items()}
    damaged_blocks |= lost_blocks(objects, commits, arrays, sizes)
    if manifest.complete:
        for block in range(manifest.plan.blocks):
            if block not in commits.records and block not in damaged_blocks:
                missing = Problem(commit_key(block), "missing, or not a commit", block)
                damaged_blocks[block] = [missing]

    recorded = [static.objects, *(record.objects for record in commits.records.values())]
    known = {key: record for records in recorded for key, record in records.items()}
    read = 0
    if full:
        begin(sum(record.bytes for record in known.values()))
        checker = _Checker(objects, arrays, progress)
        damaged_static += checker.static_objects(static, damaged_static)
        plan = None if damaged_static else _read_plan(objects, manifest, arrays, static)
        for block, record in sorted(commits.records.items()):
            if block not in damaged_blocks and (problems := checker.block(record, plan)):
                damaged_blocks[block] = problems
        read = checker.read
    own = {ROOT, LOCK, *own_keys(static, arrays, manifest.plan.blocks)}
    of_blocks = [problem for block in sorted(damaged_blocks) for problem in damaged_blocks[block]]
    return VerifyReport(
        location=objects.location,
        full=full,
        blocks=manifest.plan.blocks,
        committed=len(commits.records),
        complete=manifest.complete,
        objects=len(known),
        bytes=read,
        problems=[*damaged_static, *of_blocks],
        unknown=sorted(set(sizes) - own),
    )


def repair(objects: ObjectStore, report: VerifyReport) -> None:
    """Remove what is damaged, so that the next extraction writes it again.

    A damaged block loses its commit and thereby counts as not written. Static objects follow from
    the extraction command, which writes them again with the same bytes.

    Args:
        objects: The store of the cache.
        report: Result of its verification.

    Raises:
        CacheBusyError: A run is writing to the cache.
    """
    with run_lock(objects):
        manifest = read_manifest(objects)
        if manifest.complete and not report.sound:
            manifest = dataclasses.replace(manifest, complete=False)
            replace(objects, ROOT, encode_root(manifest))
        for block in report.damaged_blocks:
            objects.delete(commit_key(block))
        for problem in report.damaged_static:
            objects.delete(problem.key)
    _log.info(
        f"{objects.location}: {len(report.damaged_blocks)} damaged blocks and "
        f"{len(report.damaged_static)} other objects are marked; run the same `mav extract` "
        f"command again to write them again"
    )


class _Checker:
    """Reads objects and compares them with their records."""

    def __init__(
        self, objects: ObjectStore, arrays: Mapping[str, ArrayLayout], progress: Progress
    ) -> None:
        self.read = 0
        self._objects = objects
        self._arrays = arrays
        self._progress = progress

    def static_objects(self, static: StaticObjectsRecord, known: list[Problem]) -> list[Problem]:
        """Return the problems of static objects that are not known yet."""
        lost = {problem.key for problem in known}
        return [
            Problem(key, _CHANGED, None)
            for key, record in static.objects.items()
            if key not in lost and self._read(key, record) is None
        ]

    def block(self, commit: CommitRecord, plan: BlockPlan | None) -> list[Problem]:
        """Return the problems of a block whose objects all exist and have their full size."""
        problems: list[Problem] = []

        def add(key: str, reason: str) -> None:
            problems.append(Problem(key, reason, commit.block))

        if plan is not None:
            used, pairs = plan.used_rows(commit.block), len(plan.pairs_of(commit.block))
            if (commit.tokens, commit.pairs) != (used, pairs):
                add(
                    commit_key(commit.block),
                    f"{commit.pairs} pairs of {commit.tokens} tokens, but the plan has {pairs} "
                    f"of {used}",
                )
                return problems
        rows = {}
        for path, layout in self._arrays.items():
            if layout.spec.kind != "block":
                continue
            key = shard_key(layout, commit.block)
            record = commit.objects[key]
            data = self._read(key, record)
            if data is None:
                add(key, _CHANGED)
                continue
            used_rows = layout.rows_in_block(commit.tokens)
            try:
                rows[path] = decode_shard(layout, data, used_rows, record.checksums or "")
            except ValueError as error:
                add(key, str(error))
        if not problems and content_digest(rows) != commit.content:
            add(commit_key(commit.block), "the block's values are not those that were committed")
        return problems

    def _read(self, key: str, record: ObjectRecord) -> NDArray[np.uint8] | None:
        """Return an object's bytes, or None if it is missing or has another SHA-256."""
        try:
            data = self._objects.read(key)
        except FileNotFoundError:
            return None  # removed since the objects were listed
        self.read += len(data)
        self._progress(len(data))
        return data if hashlib.sha256(data.data).hexdigest() == record.sha256 else None


def _read_plan(
    objects: ObjectStore,
    manifest: Manifest,
    arrays: Mapping[str, ArrayLayout],
    static: StaticObjectsRecord,
) -> BlockPlan:
    start, row, length = (
        read_array(objects, arrays[f"pairs/{name}"], static)
        for name in ("block_start", "response_start", "response_length")
    )
    return BlockPlan(
        block_tokens=manifest.plan.block_tokens,
        block_start=start,
        response_start=row,
        response_length=length,
    )
