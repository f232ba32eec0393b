"""Writers whose storage operations are let through one at a time, in an order a test chooses."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import pytest

from mav.cache_schema.arrays import layouts, shard_key
from mav.cache_schema.errors import CacheBusyError
from mav.cache_schema.records import (
    COMMITS,
    STATIC_RECORD,
    ClaimRecord,
    CommitRecord,
    commit_key,
    content_digest,
    decode_record,
    encode_record,
)
from mav.cache_schema.root import ROOT
from mav.cache_schema.shards import encode_shard
from mav.cache_schema.storage.base import (
    Bytes,
    ConflictError,
    ObjectStore,
    replace,
)
from mav.cache_schema.storage.lock import LOCK, Holder
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.written_caches import Rows, begin, draft, lock_at_once, random_values
from tests.support.running.limits import EVENT

MANIFEST, PLAN = draft(lengths=((3, 2),), hidden=4, pooled=4)
SHARDS: Final = {path: lay for path, lay in layouts(MANIFEST).items() if lay.spec.kind == "block"}
RECORD: Final = commit_key(0)
STEPS: Final = 3 + 3 * len(SHARDS) + 1
"""Operations of a writer whom nobody disturbs: lock, version, claim; each shard; the commit."""

Order = tuple[int, ...]
"""Which writer takes the next step; one that is done passes its turn on, and so it goes on."""


class Killed(BaseException):
    """Ends a writer where it stands; nothing in the program may catch it."""


class Writer:
    """A writer and the storage as it sees it: before each operation it waits for its turn.

    Attributes:
        done: Whether it has ended.
        end: What it raised, or None.
        commits: Attempts that it committed, whether or not it was told.
    """

    def __init__(
        self,
        objects: ObjectStore,
        killed_at: int | None = None,
        lost: frozenset[int] = frozenset(),
        *,
        waits_for_root: bool = False,
    ) -> None:
        self.done = False
        self.end: BaseException | None = None
        self.commits: list[str] = []
        self.location = objects.location
        self._objects = objects
        self._killed_at = killed_at
        self._lost = lost
        self._waits_for_root = waits_for_root
        self._steps = 0
        self._turn, self._back = threading.Lock(), threading.Lock()
        self._turn.acquire()
        self._back.acquire()

    def start(self, work: Callable[[ObjectStore], None]) -> None:
        """Run until just before the first operation."""

        def run() -> None:
            try:
                work(cast("ObjectStore", self))
            except BaseException as error:
                self.end = error
            self.done = True
            self._back.release()

        threading.Thread(target=run, daemon=True).start()
        self._wait()

    def step(self) -> None:
        """Let one operation through, and what follows until just before the next."""
        self._turn.release()
        self._wait()

    def kill(self) -> None:
        """End the writer in place of its next operation."""
        self._killed_at = self._steps
        self.step()

    def __getattr__(self, name: str) -> Any:
        """Return a method of the storage that waits before, and may be told of a conflict after."""
        method = getattr(self._objects, name)

        def call(*args: Any) -> Any:
            if self._waits_for_root or args != (ROOT,):  # which is only read, where it is there
                self._wait_for_my_turn()
            found = method(*args)
            if name == "write":
                self._written(*args)
            return found

        return call

    def _written(self, key: str, data: Bytes, _: object) -> None:
        if key.startswith(COMMITS) and key != STATIC_RECORD:
            record = decode_record(data)
            if isinstance(record, CommitRecord):
                self.commits.append(record.attempt)
        if self._steps in self._lost and key != LOCK:
            raise ConflictError(key)

    def _wait_for_my_turn(self) -> None:
        self._steps += 1
        self._back.release()
        assert self._turn.acquire(timeout=EVENT)
        if self._steps == self._killed_at:
            raise Killed

    def _wait(self) -> None:
        assert self._back.acquire(timeout=EVENT), "a writer waits for ever"


class Program(Protocol):
    """What a writer does."""

    def __call__(self, objects: ObjectStore, rows: Rows, run: str) -> None:
        """Write the block."""


def of_the_run(objects: ObjectStore, rows: Rows, run: str) -> None:
    """Write the block as a process of the run that held the lock when all began."""
    CacheWriter(objects, "first").write_block(0, 1, rows)


def take_lock(objects: ObjectStore, run: str) -> None:
    """Take the lock whoever has it, as is done where the holder seems gone."""
    while True:
        with contextlib.suppress(CacheBusyError):
            replace(objects, LOCK, holder(run))
            return


def takes_over(objects: ObjectStore, rows: Rows, run: str) -> None:
    """Take the lock from a run that seems gone, and write the block."""
    take_lock(objects, run)
    CacheWriter(objects, run).write_block(0, 1, rows)


def takes_stock(objects: ObjectStore, rows: Rows, run: str) -> None:
    """Take the lock from a run that seems gone, and write the block if it is missing."""
    take_lock(objects, run)
    writer = CacheWriter(objects, run)
    for block in writer.missing():
        writer.write_block(block, 1, rows)


SAME_RUN: Final = (of_the_run, of_the_run)
ZOMBIE: Final = (of_the_run, takes_over)
THIRD: Final = (of_the_run, of_the_run, takes_over)
TWO_TAKE_OVER: Final = (of_the_run, takes_over, takes_over)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One interleaving.

    Attributes:
        programs: What each writer does.
        order: Whose turn it is.
        killed: Writer -> number of the operation in place of which it is killed.
        lost: Writer -> numbers of the operations whose answers are lost, where they are writes.
        leftovers: Whether an earlier attempt left a claim and shards behind.
    """

    programs: tuple[Program, ...]
    order: Order
    killed: dict[int, int] = field(default_factory=dict)
    lost: dict[int, frozenset[int]] = field(default_factory=dict)
    leftovers: bool = False


class Arena:
    """A cache of one block that is written again and again, each time by other writers.

    Attributes:
        rows: The values of each writer.

    Args:
        objects: Where to.
        leftovers: Of which writer's values the shards are that an earlier attempt left.
    """

    def __init__(self, objects: ObjectStore, *, leftovers: int = 3) -> None:
        for key in objects.sizes():
            objects.delete(key)
        with lock_at_once(objects) as run:
            begin(objects, run, MANIFEST, PLAN)
        self._objects = objects
        self._leftovers = leftovers
        self.rows = [rows_of(seed) for seed in range(4)]
        self._shards = [
            {
                shard_key(SHARDS[path], 0): encode_shard(SHARDS[path], values).data.tobytes()
                for path, values in rows.items()
            }
            for rows in self.rows
        ]

    def check(self, case: Case) -> str:
        """Check one interleaving; tell how its writers ended."""
        self._reset(leftovers=case.leftovers)
        writers = self._run(case)
        self._check_end(case, writers)
        if all(writer.end for writer in writers):
            # Nobody may have committed; the next run finds whatever was left in order.
            self._check_end(case, [*writers, *self._run(Case(programs=(takes_stock,), order=()))])
        ends = ["returned" if w.end is None else type(w.end).__name__ for w in writers]
        return ", ".join(sorted(ends))

    def _reset(self, *, leftovers: bool) -> None:
        for key in (RECORD, *self._shards[0]):
            self._objects.delete(key)
        replace(self._objects, LOCK, holder("first"))
        if leftovers:
            claim = encode_record(ClaimRecord(block=0, attempt="earlier"))
            for key, data in {RECORD: claim, **self._shards[self._leftovers]}.items():
                self._objects.write(key, data, None)

    def _run(self, case: Case) -> list[Writer]:
        writers = []
        for number, program in enumerate(case.programs):
            writer = Writer(
                self._objects, case.killed.get(number), case.lost.get(number, frozenset())
            )
            writer.start(partial(program, rows=self.rows[number], run=f"run {number}"))
            writers.append(writer)
        turns = itertools.chain(case.order, itertools.cycle(range(len(writers))))
        for steps, number in enumerate(turns):
            assert steps < 1000, f"{case}: no end"
            running = [w for w in (*writers[number:], *writers[:number]) if not w.done]
            if not running:
                return writers
            running[0].step()
        raise AssertionError("turns have no end")

    def _check_end(self, case: Case, writers: list[Writer]) -> None:
        for writer in writers:
            if type(writer.end) not in (type(None), CacheBusyError, Killed):
                raise AssertionError(f"{case}: not an end to expect") from writer.end
        commits = [attempt for writer in writers for attempt in writer.commits]
        assert len(commits) <= 1, f"{case}: {len(commits)} commits"
        if not commits:
            assert case.killed, f"{case}: nobody committed"
            assert all(writer.end for writer in writers), f"{case}: content without a commit"
            return
        record = decode_record(self._objects.read(RECORD).data)
        assert isinstance(record, CommitRecord), f"{case}: the commit is gone"
        assert [record.attempt] == commits, f"{case}: an attempt that nobody committed"
        there = self._objects.sizes().keys()
        assert there >= self._shards[0].keys(), f"{case}: committed before it was written"
        stored = {key: self._objects.read(key).tobytes() for key in self._shards[0]}
        assert stored in self._shards, f"{case}: the shards are not those of one attempt"
        rows = self.rows[self._shards.index(stored)]
        assert record.content == content_digest(rows), f"{case}: the values of another attempt"
        digests = {key: hashlib.sha256(data).hexdigest() for key, data in stored.items()}
        assert {key: item.sha256 for key, item in record.objects.items()} == digests, f"{case}"


def rows_of(seed: int) -> Rows:
    return {
        path: random_values(layout.dtype, (PLAN.used_rows(0), *layout.shape[1:]), 10 * seed + at)
        for at, (path, layout) in enumerate(SHARDS.items())
    }


def holder(run: str) -> bytes:
    fields = {"host": "h", "machine": "m", "pid": 1, "process_started": 0.0, "since": "", "beat": 0}
    return json.dumps(asdict(Holder(run=run, **cast("dict[str, Any]", fields)))).encode()


def check_interleavings(objects: ObjectStore, cases: Iterable[Case]) -> Counter[str]:
    """Check many interleavings; count how their writers ended."""
    arena = Arena(objects)
    return Counter(arena.check(case) for case in cases)


# Orders


def interruptions(steps: int) -> Iterator[Order]:
    """One of two writers stops anywhere, the other one anywhere too, and the first goes on."""
    for one, first, second in itertools.product((0, 1), range(steps), range(steps)):
        yield (one,) * first + (1 - one,) * second + (one,) * 2 * steps


def random_cases(
    programs: tuple[Program, ...],
    count: int,
    seed: int,
    *,
    killed: bool = False,
    lost: bool = False,
) -> Iterator[Case]:
    """Turns of few or many steps, with one writer killed or some answers lost, or neither."""
    generator = np.random.default_rng(seed)
    writers = range(len(programs))
    for _ in range(count):
        longest = int(generator.choice([1, 2, 4, 8, 16]))
        turns = [
            (int(generator.choice(writers)),) * int(generator.integers(1, longest + 1))
            for _ in range(40)
        ]
        lose = [frozenset(generator.integers(1, 20, 3).tolist()) for _ in writers]
        kill = {int(generator.choice(writers)): int(generator.integers(1, 18))}
        yield Case(
            programs=programs,
            order=tuple(itertools.chain.from_iterable(turns)),
            killed=kill if killed else {},
            lost=dict(enumerate(lose)) if lost else {},
            leftovers=bool(generator.integers(2)),
        )


def interrupted(programs: tuple[Program, ...]) -> Iterator[Case]:
    """All interruptions, now over nothing and now over what an earlier attempt left."""
    for number, order in enumerate(interruptions(STEPS + 2)):
        yield Case(programs=programs, order=order, leftovers=number % 2 == 1)


def check_killed_anywhere(objects: ObjectStore) -> None:
    """Check a writer alone that is killed at any operation: whole if committed, else done anew."""
    killed = [
        Case(programs=(of_the_run,), order=(), killed={0: step}, leftovers=leftovers)
        for step in range(1, STEPS + 3)
        for leftovers in (False, True)
    ]
    ends = check_interleavings(objects, killed)
    assert ends == {"Killed": 2 * STEPS + 1, "returned": 3}


def check_without_the_lock_nothing_is_written(objects: ObjectStore) -> None:
    """Check that a run which lost its lock begins no block."""
    arena = Arena(objects)
    replace(objects, LOCK, holder("another"))
    before = {key: objects.version(key) for key in objects.sizes()}
    with pytest.raises(CacheBusyError, match="has lost the cache's lock"):
        of_the_run(objects, arena.rows[0], "first")
    assert {key: objects.version(key) for key in objects.sizes()} == before


def check_comparing_and_replacing_is_one_step(folder: Path) -> None:
    """Check that no other process can replace anything between a comparison and its renaming."""
    objects = open_object_store(folder)
    first = objects.write("x", b"first", None)
    free = []
    really = os.rename

    def rename(one: Path, other: Path) -> None:
        descriptor = os.open(folder / ".mutex", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(other)
        except BlockingIOError:
            really(one, other)
        finally:
            os.close(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mav.cache_schema.storage.local.os.rename", rename)
        objects.write("x", b"second", first)
    assert not free
    assert objects.read("x").tobytes() == b"second"
