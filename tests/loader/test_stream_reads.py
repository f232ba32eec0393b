"""What a stream reads, how often, and in what memory."""

import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mav.cache_schema import Block, CacheReader
from mav.cache_schema.reader import BlockMemory
from mav.pipeline.loader.dataset import prefetch
from mav.pipeline.loader.sampler import StepLayout, shuffled_windows
from mav.pipeline.loader.split import PairSubset, in_subset
from tests.support.caches.streams import (
    EVERY_WORKERS,
    ONE,
    READING,
    SHAPES,
    WINDOWS,
    assert_same_batches,
    expected,
    note_reads,
    opened,
    read_whole,
    stream,
)
from tests.support.caches.written_caches import quick_disk, write


@EVERY_WORKERS
def test_every_block_is_read_once_an_epoch(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    read = note_reads(monkeypatch)
    list(stream(tiny_cache, StepLayout(batch_size=3, grad_accum=1), workers=workers))
    assert sorted(read) == list(range(17))


@READING
@given(data=st.data(), shape=SHAPES, window=WINDOWS, workers=st.sampled_from([0, 2]))
def test_no_block_is_read_twice_an_epoch(
    tiny_cache: Path, data: st.DataObject, shape: StepLayout, window: int, workers: int
) -> None:
    rank = data.draw(st.integers(0, shape.world_size - 1))
    with pytest.MonkeyPatch.context() as patch:
        read = note_reads(patch)
        list(stream(tiny_cache, shape, rank=rank, window_blocks=window, workers=workers))
    assert len(read) == len(set(read))


@EVERY_WORKERS
@pytest.mark.parametrize("tokens", [None, 60])
def test_micro_batches_without_pairs_do_not_read_again_what_was_left(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, tokens: int | None, workers: int
) -> None:
    """The step is longer than many windows, and its last micro-batches are empty."""
    shape = StepLayout(batch_size=1, grad_accum=64, batch_tokens=tokens)
    read = note_reads(monkeypatch)
    batches = list(stream(tiny_cache, shape, window_blocks=1, workers=workers))
    assert len(batches) == 64
    assert sum(not batch.pairs for batch in batches) > 5
    assert sorted(read) == list(range(17))


def test_windows_before_the_first_step_are_not_read(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = opened(tiny_cache).plan
    windows = shuffled_windows(plan, 3, 1, 4)
    ends = np.cumsum([sum(len(plan.pairs_of(int(b))) for b in window) for window in windows])
    read = note_reads(monkeypatch)
    for first in range(0, plan.pairs + 1, 3):
        for workers in (0, 1):
            read.clear()
            list(stream(tiny_cache, ONE, seed=3, epoch=1, first_step=first, workers=workers))
            left = windows[int(np.searchsorted(ends, first, side="right")) :]
            blocks = {int(block) for window in left for block in window}
            # Blocks of the first window whose pairs have all gone need not be read.
            assert set(read) <= blocks
            assert blocks - set(read) <= {int(block) for window in left[:1] for block in window}


@EVERY_WORKERS
def test_blocks_without_a_wanted_pair_are_not_read(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    reader = opened(tiny_cache)
    subset = PairSubset(split="held-out", fraction=0.3)
    pairs = np.flatnonzero(in_subset(reader.prompt_id, subset))
    blocks = set(np.searchsorted(reader.plan.block_start, pairs, side="right") - 1)
    assert 0 < len(blocks) < 17
    for window in (1, 4):
        with monkeypatch.context() as patch:
            read = note_reads(patch)
            list(stream(tiny_cache, ONE, window_blocks=window, subset=subset, workers=workers))
        assert sorted(read) == sorted(blocks)


class Tracked(Block):
    __hash__ = object.__hash__


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4])
@EVERY_WORKERS
def test_memory_is_bounded_by_the_window(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, window: int, workers: int, ahead: bool
) -> None:
    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    memories: set[int] = set()
    kept: list[BlockMemory] = []
    lock = threading.Lock()
    most = 0
    original = CacheReader.read_block

    def tracking(reader: CacheReader, number: int, memory: BlockMemory | None = None) -> Block:
        nonlocal most
        assert memory is not None
        found = original(reader, number, memory)
        block = Tracked(number=number, pairs=found.pairs, offsets=found.offsets, rows=found.rows)
        with lock:
            if id(memory) not in memories:
                kept.append(memory)  # so that no other has its id
            memories.add(id(memory))
            alive.add(block)
            most = max(most, len(alive))
        return block

    monkeypatch.setattr(CacheReader, "read_block", tracking)
    batches = stream(tiny_cache, ONE, window_blocks=window, workers=workers)
    list(prefetch(batches) if ahead else batches)
    windows = 2 if workers else 1
    assert 0 < len(memories) <= windows * window
    # A thread, or the pair that was given last, may hold one more for a moment.
    assert 0 < most <= windows * window + max(1, workers)


LENGTHS = tuple(
    (int(chosen), int(rejected))
    for chosen, rejected in np.random.default_rng(0).integers(1, 9, (30, 2))
)
KINDS: dict[str, dict[str, Any]] = {
    "factored": {},
    "dense": {"encoding": "dense", "hidden": 4},
    "topk-zstd": {"encoding": "topk", "compression": "zstd", "dtype": "float16"},
    "int8": {"storage": "int8"},
    "int8-blosc": {"storage": "int8", "compression": "blosc", "dtype": "float32"},
    "fp8": {"storage": "fp8", "dtype": "float16"},
    "fp8-zstd": {"storage": "fp8", "compression": "zstd"},
}


@pytest.fixture(scope="module", params=KINDS)
def random_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs of random bits in a dozen blocks or so; read only."""
    root = tmp_path_factory.mktemp("random") / "cache"
    with quick_disk():
        write(root, lengths=LENGTHS, block_tokens=24, **KINDS[request.param])
    return root


@EVERY_WORKERS
@pytest.mark.parametrize("window", [1, 3])
def test_memory_that_is_used_again_changes_no_batch_given_before(
    random_cache: Path, window: int, workers: int
) -> None:
    for shape in (ONE, StepLayout(batch_size=2, grad_accum=2, batch_tokens=30)):
        whole = expected(random_cache, shape, window_blocks=window)
        batches = stream(random_cache, shape, window_blocks=window, workers=workers)
        assert_same_batches(list(batches), whole.batches(shape))
    assert_same_batches(list(prefetch(batches)), whole.batches(shape))


def test_batches_share_memory_with_nothing(tiny_cache: Path) -> None:
    found = list(stream(tiny_cache, ONE, window_blocks=1))
    wanted = expected(tiny_cache, ONE, window_blocks=1).batches(ONE)
    for batch in found:
        for rows in batch.rows.values():
            rows.zero_()
    again = list(stream(tiny_cache, ONE, window_blocks=1))
    assert_same_batches(again, wanted)


@pytest.mark.parametrize("workers", [2, 4])
def test_a_block_that_comes_late_and_is_not_needed_overwrites_no_other(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Of many processes, each needs some blocks of a window only, but threads read them all."""
    shape = StepLayout(batch_size=1, grad_accum=1, world_size=4)
    whole = expected(tiny_cache, shape, window_blocks=2)
    reader, _ = read_whole(tiny_cache)
    ours = whole.order.pairs[::4]
    needed = set((np.searchsorted(reader.plan.block_start, ours, side="right") - 1).tolist())
    late = set(range(17)) - needed
    assert len(late) > 4
    original = CacheReader.read_block

    def reading(reader: CacheReader, number: int, memory: BlockMemory | None = None) -> Block:
        if number in late:
            time.sleep(0.06)
        return original(reader, number, memory)

    monkeypatch.setattr(CacheReader, "read_block", reading)
    found = []
    for batch in stream(tiny_cache, shape, window_blocks=2, workers=workers):
        found.append(batch)
        time.sleep(0.03)
    assert_same_batches(found, whole.batches(shape))
