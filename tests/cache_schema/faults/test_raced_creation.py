"""Two runs create different caches in one place: one of them is created, or both are refused."""

import dataclasses
import hashlib
import itertools
from functools import partial
from typing import Final

import pytest

from mav.cache_schema.arrays import shard_key
from mav.cache_schema.errors import CacheError
from mav.cache_schema.root import ROOT, encode_root, read_manifest
from mav.cache_schema.storage.base import (
    ObjectStore,
)
from mav.cache_schema.storage.lock import LOCK
from mav.cache_schema.writer import CacheWriter
from tests.support.caches.memory_objects import MemoryObjectStore
from tests.support.caches.written_caches import begin, draft
from tests.support.faults.interleaving import RECORD, SHARDS, Writer, rows_of, take_lock

SHAPES: Final = {"first": ((3, 2),), "second": ((1, 4),)}
"""Answers of two caches whose objects have equal sizes and whose plans differ."""


def lays_out(objects: ObjectStore, run: str) -> None:
    """Take the lock and make a cache of one block from nothing."""
    manifest, plan = draft(lengths=SHAPES[run], hidden=4, pooled=4)
    data = dataclasses.replace(manifest.data, fingerprint=hashlib.sha256(run.encode()).hexdigest())
    manifest = dataclasses.replace(manifest, data=data)
    take_lock(objects, run)
    writer = begin(objects, run, manifest, plan)
    for block in writer.missing():
        writer.write_block(block, 1, rows_of(0))
    writer.complete()


def fixed_objects(objects: ObjectStore) -> dict[str, bytes]:
    """All objects of a cache that are the same whenever it is made, and however far it has come."""
    changing = {LOCK, RECORD, *(shard_key(layout, 0) for layout in SHARDS.values())}
    found = {key: objects.read(key).tobytes() for key in objects.sizes() if key not in changing}
    if ROOT in found:
        found[ROOT] = encode_root(dataclasses.replace(read_manifest(objects), complete=False))
    return found


def test_a_cache_is_laid_out_by_one_run_or_refused() -> None:
    alone = []
    for run in SHAPES:
        lays_out(objects := MemoryObjectStore("write"), run)
        alone.append(fixed_objects(objects))
    for stop, late in itertools.product(range(1, 40, 3), range(1, 80, 6)):
        objects = MemoryObjectStore("write")
        writers = [Writer(objects, waits_for_root=True) for _ in SHAPES]
        for writer, run in zip(writers, SHAPES, strict=True):
            writer.start(partial(lays_out, run=run))
        for number in (0,) * stop + (1,) * late + (0,) * 100 + (1,) * 100:
            if not writers[number].done:
                writers[number].step()
        for writer in writers:
            assert writer.end is None or isinstance(writer.end, CacheError), writer.end
        found = fixed_objects(objects)
        if writers[1].end is None:
            assert found == alone[1], f"{stop}, {late}: the cache of the second run is spoilt"
        elif ROOT in found and found not in alone:
            take_lock(objects, "third")
            with pytest.raises(CacheError):
                CacheWriter(objects, "third").missing()
