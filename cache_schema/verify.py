"""Verifying a cache: everything there and of its size, then every byte against its digests."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.arrays import ArrayLayout, layouts, shard_key
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.reader import read_array
from mav.cache_schema.records import (
    CommitRecord,
    LayoutRecord,
    ObjectRecord,
    Problem,
    commit_key,
    content_digest,
    lost_blocks,
    object_problems,
    own_keys,
    read_commits,
    read_layout,
)
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.shards import decode_shard
from mav.cache_schema.storage.base import ObjectStore, replace
from mav.cache_schema.storage.lock import LOCK, run_lock

_log = logging.getLogger(__name__)

_CHANGED: Final = "its bytes have another SHA-256 than when it was written"

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        location: The cache.
        full: Whether digests were compared, not sizes alone.
        blocks: Blocks of the plan.
        committed: Blocks with a commit record that can be read.
        complete: Whether the manifest says that all blocks are written.
        objects: Objects that were checked.
        bytes: Bytes that were read and compared.
        damaged_blocks: Block -> what is wrong with it.
        damaged_layout: What is wrong with descriptions, plan or unembedding.
        unknown: Objects that belong to no block and to no array.
    """

    location: str
    full: bool
    blocks: int
    committed: int
    complete: bool
    objects: int
    bytes: int
    damaged_blocks: dict[int, list[Problem]]
    damaged_layout: list[Problem]
    unknown: list[str]

    @property
    def sound(self) -> bool:
        """Whether the cache can be trained from."""
        return (
            self.complete
            and self.committed == self.blocks
            and not self.damaged_blocks
            and not self.damaged_layout
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for scripts."""
        blocks = self.damaged_blocks.items()
        return dataclasses.asdict(self) | {
            "damaged_blocks": {block: list(map(str, problems)) for block, problems in blocks},
            "damaged_layout": list(map(str, self.damaged_layout)),
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
        objects: Where it is.
        full: Read everything and compare all digests; else existence and sizes.
        begin: Called once with the bytes that will be read.
        progress: Called with the bytes of each object that was read.

    Raises:
        CacheError: There is no cache, or its root or the record of its layout is unreadable, so
            that nothing can be said of the rest.
    """
    manifest = read_manifest(objects)
    sizes = objects.sizes()
    every = layouts(manifest)
    layout = read_layout(objects, manifest.identity())
    commits = read_commits(objects, manifest, sizes)
    damaged_layout = object_problems(layout.objects, sizes)
    damaged_blocks = {block: [problem] for block, problem in commits.damaged.items()}
    damaged_blocks |= lost_blocks(objects, commits, every, sizes)
    if manifest.complete:
        for block in range(manifest.plan.blocks):
            if block not in commits.records and block not in damaged_blocks:
                damaged_blocks[block] = [Problem(commit_key(block), "missing, or not a commit")]

    recorded = [layout.objects, *(record.objects for record in commits.records.values())]
    known = {key: record for records in recorded for key, record in records.items()}
    read = 0
    if full:
        begin(sum(record.bytes for record in known.values()))
        checker = _Checker(objects, every, progress)
        damaged_layout += checker.layout(layout, damaged_layout)
        plan = None if damaged_layout else _read_plan(objects, manifest, every, layout)
        for block, record in sorted(commits.records.items()):
            if block not in damaged_blocks and (problems := checker.block(record, plan)):
                damaged_blocks[block] = problems
        read = checker.read
    ours = {ROOT, LOCK, *own_keys(layout, every, manifest.plan.blocks)}
    return VerifyReport(
        location=objects.location,
        full=full,
        blocks=manifest.plan.blocks,
        committed=len(commits.records),
        complete=manifest.complete,
        objects=len(known),
        bytes=read,
        damaged_blocks=dict(sorted(damaged_blocks.items())),
        damaged_layout=damaged_layout,
        unknown=sorted(set(sizes) - ours),
    )


def repair(objects: ObjectStore, report: VerifyReport) -> None:
    """Remove what is damaged, so that the next extraction writes it anew.

    A damaged block counts as not written from then on. Descriptions, plan and unembedding follow
    from the command and are written again with the bytes they had.

    Args:
        objects: The cache that was verified.
        report: Result of a verification.

    Raises:
        CacheBusyError: A run writes to the cache.
    """
    with run_lock(objects):
        manifest = read_manifest(objects)
        if manifest.complete and not report.sound:
            manifest = dataclasses.replace(manifest, complete=False)
            replace(objects, ROOT, encode_root(manifest))
        for block in report.damaged_blocks:
            objects.delete(commit_key(block))
        for problem in report.damaged_layout:
            objects.delete(problem.key)
    _log.info(
        f"{objects.location}: {len(report.damaged_blocks)} damaged blocks and "
        f"{len(report.damaged_layout)} other objects are marked; run the same `mav extract` "
        f"command again, it writes them again"
    )


class _Checker:
    """Reads objects and compares them with their records."""

    def __init__(
        self, objects: ObjectStore, every: Mapping[str, ArrayLayout], progress: Progress
    ) -> None:
        self.read = 0
        self._objects = objects
        self._every = every
        self._progress = progress

    def layout(self, record: LayoutRecord, known: list[Problem]) -> list[Problem]:
        """Return the problems of the static objects, beyond those that are known."""
        lost = {problem.key for problem in known}
        return [
            Problem(key, _CHANGED)
            for key, item in record.objects.items()
            if key not in lost and self._read(key, item) is None
        ]

    def block(self, record: CommitRecord, plan: BlockPlan | None) -> list[Problem]:
        """Return the problems of a block whose objects are there in full size."""
        if plan is not None:
            used, pairs = plan.used_rows(record.block), len(plan.pairs_of(record.block))
            if (record.tokens, record.pairs) != (used, pairs):
                return [
                    Problem(
                        commit_key(record.block),
                        f"{record.pairs} pairs of {record.tokens} tokens, but the plan has "
                        f"{pairs} of {used}",
                    )
                ]
        problems = []
        rows = {}
        for path, layout in self._every.items():
            if layout.spec.kind != "block":
                continue
            key = shard_key(layout, record.block)
            item = record.objects[key]
            data = self._read(key, item)
            if data is None:
                problems.append(Problem(key, _CHANGED))
                continue
            try:
                rows[path] = decode_shard(
                    layout, data, layout.rows_in_block(record.tokens), item.checksums or ""
                )
            except ValueError as error:
                problems.append(Problem(key, str(error)))
        if not problems and content_digest(rows) != record.content:
            problems.append(
                Problem(f"block {record.block}", "its values are not those that were committed")
            )
        return problems

    def _read(self, key: str, record: ObjectRecord) -> NDArray[np.uint8] | None:
        """Return an object's bytes, or None if they are not those that were written."""
        try:
            data = self._objects.read(key)
        except FileNotFoundError:
            return None  # removed since sizes were looked at
        self.read += len(data)
        self._progress(len(data))
        return data if hashlib.sha256(data.data).hexdigest() == record.sha256 else None


def _read_plan(
    objects: ObjectStore, manifest: Manifest, every: Mapping[str, ArrayLayout], record: LayoutRecord
) -> BlockPlan:
    start, row, length = (
        read_array(objects, every[f"pairs/{name}"], record)
        for name in ("block_start", "response_start", "response_length")
    )
    return BlockPlan(
        block_tokens=manifest.plan.block_tokens,
        block_start=start,
        response_start=row,
        response_length=length,
    )
