"""One extraction of three tiny blocks, step for step as `pipeline/extraction/extract.py` does it.

It looks for a cache, takes the lock, creates the cache or goes on with it, takes stock, writes the
missing blocks and marks the cache complete; alone, or shared by several processes. What it did it
writes down in a journal outside of the cache, so that a test knows how far a killed run had come.
"""

import gc
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TypeVar
from unittest import mock

from zarr.core.sync import cleanup_resources

from mav.cache_schema import static_objects
from mav.cache_schema.comparison import require_same
from mav.cache_schema.creation import require_free
from mav.cache_schema.errors import CacheError
from mav.cache_schema.manifest import Manifest
from mav.cache_schema.plan import BlockPlan
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import CommitRecord, decode_record
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import (
    Rows,
    block_rows,
    draft,
    lock_at_once,
    pair_columns,
    read_all,
    unembedding,
)

BLOCKS: Final = 3
MORE_BLOCKS: Final = 8
"""Enough of them for several processes to share."""

_T = TypeVar("_T")


class Processes(Protocol):
    """What a run asks of the processes it was launched with; see `runtime.distributed`."""

    rank: int
    count: int

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Call a function on the first process; return its result on all."""

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, having waited for them."""


class Alone:
    """A run of one process."""

    rank, count = 0, 1

    def from_first(self, make: Callable[[], _T]) -> _T:
        return make()

    def gather(self, value: _T) -> list[_T]:
        return [value]


class Journal:
    """Lines such as `computed 2`, each handed to the kernel before the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())


def journal_blocks(path: Path, verb: str) -> list[int]:
    """The blocks that runs `computed`, or that they `wrote`, in order."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [int(line[1]) for line in lines if line[0] == verb]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is to be written."""

    manifest: Manifest
    plan: BlockPlan
    columns: Rows
    unembedding: Rows
    blocks: list[Rows]


@cache
def content(blocks: int) -> Content:
    """The cache of so many blocks, the same in every process."""
    # Answers of 3 + 2 and 4 + 1, then of 7 + 3 and 2 + 6 tokens, and so on: ten at most a block.
    lengths = ((3, 2), (4, 1), (7, 3), (2, 6)) + ((4, 5),) * (blocks - 3)
    manifest, plan = draft(lengths=lengths, block_tokens=10)
    assert plan.blocks == blocks
    return Content(
        manifest=manifest,
        plan=plan,
        columns=pair_columns(plan),
        unembedding=unembedding(manifest),
        blocks=[block_rows(manifest, plan, block) for block in range(blocks)],
    )


def prepare() -> None:
    """Do, in the process that forks all runs, what they have in common.

    Zarr describes the arrays in a thread of its own, which must not be there when forking; it would
    take most of the time of a run.
    """
    describe = static_objects.descriptions
    manifests = [content(blocks).manifest for blocks in (BLOCKS, MORE_BLOCKS)]
    described = [describe(manifest) for manifest in manifests]
    cleanup_resources()

    def known(manifest: Manifest) -> dict[str, bytes]:
        if manifest in manifests:
            return described[manifests.index(manifest)]
        return describe(manifest)

    mock.patch.object(static_objects, "descriptions", known).start()
    gc.freeze()


def extract(
    location: Path,
    log: Callable[[str], None] = lambda _: None,
    *,
    processes: Processes | None = None,
    blocks: int = BLOCKS,
) -> None:
    """Write the cache, go on with one that was interrupted, or leave a complete one as it is."""
    processes = processes or Alone()
    objects = open_object_store(location)
    given = content(blocks)
    manifest, plan = given.manifest, given.plan
    with ExitStack() as held:

        def lock() -> str:
            run = held.enter_context(lock_at_once(objects))
            log("locked")
            return run

        stored = processes.from_first(
            lambda: read_manifest(objects) if require_free(objects) else None
        )
        begun = stored is not None and not stored.complete
        run = processes.from_first(lock) if begun else None
        if stored is not None:
            require_same(objects.location, stored, manifest)
            if not begun and processes.from_first(lambda: _sound(location)):
                return
        run = run or processes.from_first(lock)
        if stored is None:

            def create() -> None:
                CacheWriter.create(objects, run, manifest, plan, given.columns, given.unembedding)

            processes.from_first(create)
            log("created")
        writer = CacheWriter(objects, run)
        if stored is not None:
            processes.from_first(
                lambda: writer.restore_static_objects(plan, given.columns, given.unembedding)
            )
        missing = processes.from_first(writer.missing)
        for block in missing[processes.rank :: processes.count]:
            log(f"computed {block}")
            writer.write_block(block, len(plan.pairs_of(block)), given.blocks[block])
            log(f"wrote {block}")
        processes.gather(None)
        processes.from_first(writer.complete)
        log("completed")
        sum(objects.sizes().values())


def decoded_digest(location: Path) -> str:
    """SHA-256 over all that can be read from a complete cache."""
    reader = CacheReader(location)
    values = read_all(location) | {
        "block_start": reader.plan.block_start,
        "response_start": reader.plan.response_start,
        "response_length": reader.plan.response_length,
    }
    digest = hashlib.sha256(repr(reader.manifest).encode())
    for name in sorted(values):
        found = values[name]
        digest.update(f"{name} {found.dtype} {found.shape}\n".encode() + found.tobytes())
    return digest.hexdigest()


def committed_blocks(location: Path) -> list[int]:
    """The blocks whose commit record is on the disk, whatever else is."""
    found = [decode_record(path.read_bytes()) for path in (location / "commits").glob("0*.json")]
    return sorted(record.block for record in found if isinstance(record, CommitRecord))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A complete cache, as far as an interruption must not show in it.

    Attributes:
        digest: See `decoded_digest`.
        sound: Whether every byte was as it was written.
        unknown: Objects that belong to nothing.
        files: All files and folders, hidden ones too, but for the lock and the mutex.
    """

    digest: str
    sound: bool
    unknown: list[str]
    files: list[str]


def examine(location: Path) -> Whole:
    """Look at everything in a cache."""
    report = verify(open_object_store(location), full=True)
    names = (str(path.relative_to(location)) for path in location.rglob("*"))
    return Whole(
        digest=decoded_digest(location),
        sound=report.sound,
        unknown=report.unknown,
        files=sorted(name for name in names if name not in ("lock.json", ".mutex")),
    )


def _sound(location: Path) -> bool:
    try:
        CacheReader(location)
    except CacheError:
        return False
    return True
