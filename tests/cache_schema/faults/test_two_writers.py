"""Several writers on one block with different bytes, their storage operations forced to interleave.

A cache has no one to ask who may write, only conditional writes. Here each writer runs in a thread
of its own that stops before every operation on the storage, and one of them at a time is let go for
one operation, in an order that the test chooses: every order of the first few operations, every way
to interrupt each of two writers once, and random orders of long and short turns. The writers may be
of one run, or of an older run that lost its lock without noticing; they may be killed midway; and
the answer to a write may be lost, so that the storage's client tries again and is told of a
conflict with its own write. However it goes, one attempt is committed, and all bytes are of that.
"""

import itertools
from pathlib import Path
from typing import Final

import pytest

from mav.cache_schema.arrays import shard_key
from mav.cache_schema.records import (
    CommitRecord,
    decode_record,
)
from mav.cache_schema.shards import decode_shard
from mav.cache_schema.storage.base import (
    ObjectStore,
)
from mav.cache_schema.storage.open import open_object_store
from mav.cache_schema.verify import verify
from tests.support.caches.memory_objects import MemoryObjectStore
from tests.support.caches.written_caches import Rows
from tests.support.faults.interleaving import (
    RECORD,
    SAME_RUN,
    SHARDS,
    THIRD,
    TWO_TAKE_OVER,
    ZOMBIE,
    Arena,
    Case,
    Program,
    check_comparing_and_replacing_is_one_step,
    check_interleavings,
    check_killed_anywhere,
    check_without_the_lock_nothing_is_written,
    interrupted,
    of_the_run,
    random_cases,
    takes_stock,
)
from tests.support.sweeps import sweep

pytestmark = pytest.mark.usefixtures("unflushed_disk")


PLACES: Final = ("folder", "tags of writes", "tags of contents")


@pytest.fixture(params=PLACES)
def objects(request: pytest.FixtureRequest, place: Path) -> ObjectStore:
    if request.param == "folder":
        return open_object_store(place / "cache")
    return MemoryObjectStore("write" if request.param == "tags of writes" else "content")


@pytest.mark.parametrize("steps", [7, pytest.param(9, marks=pytest.mark.slow)])
def test_every_order_of_the_first_steps(objects: ObjectStore, steps: int) -> None:
    orders = itertools.product((0, 1), repeat=steps)
    cases = [Case(programs=SAME_RUN, order=order) for order in orders]
    assert check_interleavings(objects, cases).total() == 2**steps


def test_every_interruption(objects: ObjectStore) -> None:
    ends = check_interleavings(objects, interrupted(SAME_RUN))
    assert set(ends) == {"CacheBusyError, returned", "returned, returned"}


@sweep(
    {
        "objects": PLACES,
        "programs": [SAME_RUN, ZOMBIE, THIRD, TWO_TAKE_OVER],
        "lost": [False, True],
        "killed": [False, True],
    },
    indirect=["objects"],
)
def test_random_interleavings(
    objects: ObjectStore, programs: tuple[Program, ...], lost: bool, killed: bool
) -> None:
    cases = random_cases(programs, 25, seed=1, killed=killed, lost=lost)
    ends = check_interleavings(objects, cases)
    assert any("Killed" in end for end in ends) == killed


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("programs", [SAME_RUN, ZOMBIE, THIRD, TWO_TAKE_OVER])
def test_many_random_interleavings(
    objects: ObjectStore, programs: tuple[Program, ...], lost: bool, killed: bool
) -> None:
    check_interleavings(objects, random_cases(programs, 400, seed=2, killed=killed, lost=lost))


def test_a_writer_alone_killed_anywhere(objects: ObjectStore) -> None:
    check_killed_anywhere(objects)


def test_without_the_lock_nothing_is_written(objects: ObjectStore) -> None:
    check_without_the_lock_nothing_is_written(objects)


def verifies(objects: ObjectStore, rows: Rows, run: str) -> None:
    """Verify the cache while others write to it."""
    found = verify(objects, full=True)
    assert not found.damaged_blocks, found.damaged_blocks


@pytest.mark.parametrize("count", [15, pytest.param(50, marks=pytest.mark.slow)])
@sweep({"objects": PLACES, "looks": [takes_stock, verifies]}, meet=1, indirect=["objects"])
def test_a_commit_made_while_others_look_is_not_taken_for_damage(
    objects: ObjectStore, looks: Program, count: int
) -> None:
    check_interleavings(objects, interrupted((of_the_run, looks)))
    killed = looks is takes_stock
    check_interleavings(objects, random_cases((*SAME_RUN, looks), count, seed=4, killed=killed))


def test_where_tags_are_of_contents_a_late_write_may_stay_unseen_but_never_when_read() -> None:
    # A writer that has checked its claim and then sleeps replaces what the next one committed, if
    # that has the very bytes that an earlier attempt had left: the tag is the same as before.
    for attempt in (0, 1):
        objects = MemoryObjectStore("content")
        arena = Arena(objects, leftovers=attempt)
        for case in filter(lambda case: case.leftovers, interrupted(SAME_RUN)):
            try:
                arena.check(case)
            except AssertionError:
                record = decode_record(objects.read(RECORD).data)
                assert isinstance(record, CommitRecord)
                with pytest.raises(ValueError, match="not those that were committed"):
                    decode_all(objects, record)


def decode_all(objects: ObjectStore, record: CommitRecord) -> None:
    """Decode the block's shards, checked as a reader does it."""
    for layout in SHARDS.values():
        key = shard_key(layout, 0)
        checksums = record.objects[key].checksums
        assert checksums is not None
        decode_shard(layout, objects.read(key), record.tokens, checksums)


def test_comparing_and_replacing_is_one_step(tmp_path: Path) -> None:
    check_comparing_and_replacing_is_one_step(tmp_path)
