"""Any sequence of claims, writes, commits, crashes and takeovers commits each block just once.

Several writers, each with values of its own, work on a cache of three blocks. One storage operation
of one of them at a time is let through, so a writer may stop for long between its claim, its
objects and its commit. It may be killed there, and its run may lose the lock to another one.
"""

import shutil
import tempfile
from functools import partial
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mav.cache_schema.commits import read_commits
from mav.cache_schema.errors import CacheBusyError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.records import content_digest
from mav.cache_schema.storage.base import ObjectStore
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.memory_objects import MemoryObjectStore
from tests.support.caches.written_caches import (
    Rows,
    begin,
    draft,
    of_kind,
    quick_disk,
    random_values,
    same_bits,
)
from tests.support.faults.interleaving import Killed, Writer, take_lock
from tests.support.profiles import examples

MANIFEST, PLAN = draft(lengths=((3, 2), (4, 1), (2, 6)), hidden=4, pooled=4, block_tokens=8)
BLOCKS = st.integers(0, PLAN.blocks - 1)


def values(block: int, seed: int) -> Rows:
    """The rows of a block as one writer computes them."""
    return {
        path: random_values(layout.dtype, (PLAN.used_rows(block), *layout.shape[1:]), seed)
        for path, layout in of_kind(MANIFEST, "block").items()
    }


def write_block(objects: ObjectStore, run: str, block: int, rows: Rows) -> None:
    CacheWriter(objects, run).write_block(block, len(PLAN.pairs_of(block)), rows)


class Writers(RuleBasedStateMachine):
    """Writers over one store, and what they have committed."""

    @initialize(kind=st.sampled_from(["folder", "write", "content"]))
    def create(self, kind: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.quick = quick_disk()
        self.quick.__enter__()
        self.objects: ObjectStore = open_object_store(self.folder / "cache")
        if kind != "folder":
            self.objects = MemoryObjectStore("write" if kind == "write" else "content")
        self.runs = 0
        self.seeds = 0
        self.writers: list[tuple[int, str, Writer]] = []
        """Block, digest of the values and writer of those that have not ended."""
        self.committed: dict[int, str] = {}
        """Block -> digest of the values that were committed."""
        take_lock(self.objects, self.run)
        begin(self.objects, self.run, MANIFEST, PLAN)

    def teardown(self) -> None:
        for _, _, writer in self.writers:
            if not writer.done:
                writer.kill()
        self.quick.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    @property
    def run(self) -> str:
        """The run that holds the lock."""
        return f"run {self.runs}"

    def let_through(self, number: int, operations: int) -> None:
        """Let operations of a writer through, until it has ended at the latest."""
        block, content, writer = self.writers[number % len(self.writers)]
        for _ in range(operations):
            before = len(writer.commits)
            writer.step()
            if len(writer.commits) > before:
                assert block not in self.committed, "a block is committed twice"
                self.committed[block] = content
            if writer.done:
                assert type(writer.end) in (type(None), CacheBusyError, Killed), writer.end
                assert block in self.committed or writer.end
                self.writers.remove((block, content, writer))
                return

    @precondition(lambda self: len(self.writers) < 4)
    @rule(block=BLOCKS)
    def claim(self, block: int) -> None:
        self.seeds += 1
        rows = values(block, self.seeds)
        writer = Writer(self.objects)
        writer.start(partial(write_block, run=self.run, block=block, rows=rows))
        self.writers.append((block, content_digest(rows), writer))
        self.let_through(-1, 3)  # the lock, the version, the claim

    @precondition(lambda self: self.writers)
    @rule(number=st.integers(0, 3), operations=st.integers(1, 8))
    def write(self, number: int, operations: int) -> None:
        self.let_through(number, operations)

    @precondition(lambda self: self.writers)
    @rule(number=st.integers(0, 3))
    def commit(self, number: int) -> None:
        self.let_through(number, 1000)

    @precondition(lambda self: self.writers)
    @rule(number=st.integers(0, 3))
    def crash(self, number: int) -> None:
        _, _, writer = self.writers.pop(number % len(self.writers))
        writer.kill()
        assert type(writer.end) is Killed

    @rule()
    def expire(self) -> None:
        self.runs += 1
        take_lock(self.objects, self.run)

    @rule()
    def resume(self) -> None:
        """Another run takes the lock and writes all that is missing, while the others sleep."""
        self.expire()
        writer = CacheWriter(self.objects, self.run)
        missing = writer.missing()
        assert set(missing) == set(range(PLAN.blocks)) - self.committed.keys()
        for block in missing:
            self.seeds += 1
            rows = values(block, self.seeds)
            write_block(self.objects, self.run, block, rows)
            self.committed[block] = content_digest(rows)

    @precondition(lambda self: len(self.committed) == PLAN.blocks)
    @rule()
    def close(self) -> None:
        CacheWriter(self.objects, self.run).complete()
        if isinstance(self.objects, MemoryObjectStore):
            return
        reader = CacheReader(self.folder / "cache")
        for block, content in self.committed.items():
            assert content_digest(reader.read_block(block).rows) == content
        for name, column in (("start", PLAN.response_start), ("length", PLAN.response_length)):
            assert same_bits(getattr(reader.plan, f"response_{name}"), column)

    @invariant()
    def what_was_committed_is_there_and_whole(self) -> None:
        sizes = self.objects.sizes()
        commits = read_commits(self.objects, MANIFEST, sizes).records
        assert {block: commit.content for block, commit in commits.items()} == self.committed
        report = verify(self.objects, full=True)
        assert (report.problems, report.unknown) == ([], [])


TestWriters = Writers.TestCase
TestWriters.settings = settings(max_examples=examples(0.6), stateful_step_count=20)
