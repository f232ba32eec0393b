"""Streams that end early, by an error or without pairs leave no thread behind."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mav.cache_schema import CacheError
from mav.pipeline.loader.batch import Batch
from mav.pipeline.loader.dataset import _BATCHES_AHEAD, CachedPreferenceDataset, prefetch
from mav.pipeline.loader.split import PairSubset
from tests.support.caches.streams import (
    EVERY_WORKERS,
    ONE,
    assert_same_batches,
    expected,
    finish,
    note_reads,
    read_whole,
    stream,
    threads,
)
from tests.support.caches.written_caches import stored_objects
from tests.support.running.limits import wait_until


class StopItError(Exception):
    pass


def leave_by_break(source: CachedPreferenceDataset, after: int) -> None:
    for number, _ in enumerate(prefetch(source), 1):
        if number == after:
            break


def leave_by_closing(source: CachedPreferenceDataset, after: int) -> None:
    with contextlib.closing(cast("Any", prefetch(source))) as batches:
        assert len(list(islice(batches, after))) == after


def leave_a_full_queue(source: CachedPreferenceDataset, after: int) -> None:
    made: list[Batch] = []
    total = len(list(source))

    def noted() -> Iterator[Batch]:
        for batch in source:
            made.append(batch)
            yield batch

    with contextlib.closing(cast("Any", prefetch(cast("Any", noted())))) as batches:
        assert len(list(islice(batches, after))) == after
        # Those in the queue, one that there is no room for, and no more.
        wait_until(lambda: len(made) == min(after + _BATCHES_AHEAD + 1, total))


def leave_by_an_error(source: CachedPreferenceDataset, after: int) -> None:
    def consume() -> None:
        for number, _ in enumerate(prefetch(source), 1):
            if number == after:
                raise StopItError

    with pytest.raises(StopItError):
        consume()


@EVERY_WORKERS
@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_closing, leave_a_full_queue, leave_by_an_error]
)
def test_leaving_early_ends_the_threads(
    tiny_cache: Path, leave: Callable[[CachedPreferenceDataset, int], None], workers: int
) -> None:
    for after in (1, 7, 40):
        finish(partial(leave, stream(tiny_cache, ONE, workers=workers), after))
        assert not threads()


@EVERY_WORKERS
def test_leaving_a_stream_early_ends_its_threads(tiny_cache: Path, workers: int) -> None:
    batches = iter(stream(tiny_cache, ONE, workers=workers))
    next(batches)
    assert bool(threads()) == bool(workers)
    del batches
    assert not threads()


def test_nothing_is_read_before_the_first_batch_is_asked_for(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = note_reads(monkeypatch)
    batches = prefetch(stream(tiny_cache, ONE, workers=4))
    assert not threads()
    del batches
    assert not threads()
    assert read == []


def test_an_epoch_without_pairs_ends(tiny_cache: Path) -> None:
    nothing = PairSubset(split="held-out", fraction=0.0)
    for workers in (0, 4):
        assert not list(prefetch(stream(tiny_cache, ONE, subset=nothing, workers=workers)))
    assert not threads()


def damaged_copy(root: Path, to: Path, block: int) -> Path:
    copied = shutil.copytree(root, to / "damaged")
    file = stored_objects(copied, "hidden_states")[block]
    data = bytearray(file.read_bytes())
    data[5] ^= 4
    file.write_bytes(data)
    return copied


@EVERY_WORKERS
@pytest.mark.parametrize("place", [0, 5, -1])
def test_damage_comes_out_of_reading_ahead(
    tiny_cache: Path, tmp_path: Path, place: int, workers: int
) -> None:
    whole = expected(tiny_cache, ONE)
    block = int(np.concatenate(whole.order.blocks)[place])
    root = damaged_copy(tiny_cache, tmp_path, block)
    given: list[Batch] = []

    def consume() -> None:
        given.extend(prefetch(stream(root, ONE, workers=workers)))
        raise AssertionError("damage went unseen")

    def consume_one_by_one() -> None:
        for batch in prefetch(stream(root, ONE, workers=workers)):
            given.append(batch)  # noqa: PERF402 (what comes before the error is wanted)

    with pytest.raises(CacheError) as caught:
        finish(consume)
    given.clear()
    with pytest.raises(CacheError) as again:
        finish(consume_one_by_one)
    assert str(caught.value) == str(again.value)
    assert type(caught.value) is CacheError
    name = f"{root}/hidden_states/c.{block}"
    assert str(caught.value).startswith(name)
    assert "(the checksum of chunk 0 does not match its bytes)" in str(caught.value)
    # The cause is what is wrong with the bytes, and nothing is known of threads.
    cause = caught.value.__cause__
    assert type(cause) is ValueError
    assert cause.__cause__ is None
    assert cause.__context__ is None
    assert not threads()
    # Pairs before the damage have come, and they are what they should be.
    reader, _ = read_whole(tiny_cache)
    first = next(
        at for at, pair in enumerate(whole.order.pairs) if pair in reader.plan.pairs_of(block)
    )
    assert len(given) == first
    assert_same_batches(given, whole.batches(ONE)[:first])


@EVERY_WORKERS
def test_an_error_while_batches_are_made_comes_out(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def fail(batch: Batch) -> Batch:
        raise StopItError

    monkeypatch.setattr(Batch, "pin_memory", fail)
    with pytest.raises(StopItError):
        finish(lambda: list(prefetch(stream(tiny_cache, ONE, workers=workers), pinned=True)))
    assert not threads()


@EVERY_WORKERS
def test_a_cache_that_is_not_there_is_told_of(tmp_path: Path, workers: int) -> None:
    with pytest.raises(CacheError, match="none"):
        finish(lambda: list(prefetch(stream(tmp_path / "none", ONE, workers=workers))))
    assert not threads()
