"""Streams of batches: what they hold, where they may begin, who reads them and from what memory."""

import contextlib
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from mav.cache_schema import Block, CacheError, CacheReader
from mav.cache_schema.reader import BlockMemory
from mav.pipeline.loader.batch import Batch, collate, empty_like
from mav.pipeline.loader.dataset import _BATCHES_AHEAD, CachedPreferenceDataset, prefetch
from mav.pipeline.loader.sampler import EpochOrder, StepLayout, order_epoch, shuffled_windows
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.ops.tensor_storage import from_stored
from tests.support.limits import EVENT, PROCESS, wait_until
from tests.support.written_caches import quick_disk, stored_objects, write

ALL = PairSubset(which="all")
# Reading is slow on a busy machine, and shrinking would read for minutes.
READING = settings(
    max_examples=15,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
SHAPES = st.builds(
    StepLayout,
    batch_size=st.integers(1, 9),
    grad_accum=st.integers(1, 4),
    world_size=st.integers(1, 3),
    batch_tokens=st.none() | st.integers(1, 300),
)
SEEDS = st.integers(0, 2**31)
WINDOWS = st.integers(1, 20)
EVERY_WORKERS = pytest.mark.parametrize("workers", [0, 1, 4])
ONE = StepLayout(batch_size=1, grad_accum=1)
# Both have four slots, which one, two or four processes share.
MODES = {
    "pairs": StepLayout(batch_size=1, grad_accum=4),
    "tokens": StepLayout(batch_size=1, grad_accum=4, batch_tokens=90),
}
RAGGED = PairSubset(which="training", fraction=0.12)
EVERY_MODE = pytest.mark.parametrize("shape", MODES.values(), ids=MODES)


def stream(
    root: Path,
    shape: StepLayout,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    rank: int = 0,
    window_blocks: int = 4,
    subset: PairSubset = ALL,
    workers: int = 0,
) -> CachedPreferenceDataset:
    return CachedPreferenceDataset(
        root,
        subset,
        replace(shape, rank=rank),
        seed=seed,
        epoch=epoch,
        first_step=first_step,
        window_blocks=window_blocks,
        workers=workers,
    )


# What batches should be, from whole blocks and the order alone


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An epoch of a cache."""

    order: EpochOrder
    slots: list[list[Batch]]

    @property
    def steps(self) -> int:
        return self.order.steps

    def batches(self, shape: StepLayout, rank: int = 0, first_step: int = 0) -> list[Batch]:
        """The batches of one process, whatever the number of processes."""
        ranked = replace(shape, rank=rank)
        return [
            slots[ranked.slot(micro)]
            for slots in self.slots[first_step:]
            for micro in range(shape.grad_accum)
        ]


@cache
def read_whole(root: Path) -> tuple[CacheReader, dict[str, Tensor]]:
    """A cache, and its arrays by path, [rows, ...], with the rows that no pair uses left zero."""
    reader = CacheReader(root)
    plan = reader.plan
    found: dict[str, Any] = {}
    for number in range(plan.blocks):
        for path, rows in reader.read_block(number).rows.items():
            shape = (plan.blocks * plan.block_tokens, *rows.shape[1:])
            found.setdefault(path, np.zeros(shape, rows.dtype))
            found[path][plan.first_row(number) :][: len(rows)] = rows
    floating = ("hidden_states", "final_hidden_state", "base_logits")
    return reader, {
        path: from_stored(rows, reader.manifest.states.dtype)
        if path in floating
        else torch.from_numpy(rows)
        for path, rows in found.items()
    }


def expected(
    root: Path,
    shape: StepLayout,
    *,
    seed: int = 0,
    epoch: int = 0,
    window_blocks: int = 4,
    subset: PairSubset = ALL,
) -> Expected:
    reader, arrays = read_whole(root)
    plan = reader.plan
    wanted = in_subset(reader.prompt_id, subset)
    order = order_epoch(plan, wanted, shape, seed=seed, epoch=epoch, window_blocks=window_blocks)

    def batch(pairs: list[int], step_pairs: int) -> Batch:
        answers = [
            torch.arange(start, start + length)
            for pair in pairs
            for start, length in zip(
                plan.response_start[pair].tolist(), plan.response_length[pair].tolist(), strict=True
            )
        ]
        at = torch.cat([torch.empty(0, dtype=torch.int64), *answers])
        return Batch(
            rows={path: array[at] for path, array in arrays.items()},
            offsets=torch.tensor([0, *map(len, answers)]).cumsum(0),
            step_pairs=step_pairs,
        )

    slots = [
        [
            batch(order.pairs[start:end].tolist(), int(bounds[-1] - bounds[0]))
            for start, end in pairwise(bounds.tolist())
        ]
        for bounds in order.slot_start
    ]
    return Expected(order=order, slots=slots)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def assert_same_batches(found: list[Batch], wanted: list[Batch]) -> None:
    """Compare bits, since some caches hold NaN."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.step_pairs == other.step_pairs
        assert one.offsets.dtype == other.offsets.dtype
        assert one.offsets.tolist() == other.offsets.tolist()
        assert one.rows.keys() == other.rows.keys()
        for path, rows in one.rows.items():
            assert (rows.dtype, rows.shape) == (other.rows[path].dtype, other.rows[path].shape)
            assert bits(rows) == bits(other.rows[path]), path


# Contents


@cache
def pair_of_state(root: Path) -> dict[bytes, int]:
    """First state of the chosen answer -> pair; prompts all differ, so the states do."""
    reader, arrays = read_whole(root)
    first = reader.plan.response_start[:, 0].tolist()
    found = {bits(arrays["hidden_states"][row]): pair for pair, row in enumerate(first)}
    assert len(found) == reader.plan.pairs
    return found


def pairs_in(root: Path, batch: Batch) -> list[int]:
    known = pair_of_state(root)
    return [known[bits(batch.states[token])] for token in batch.offsets[:-1:2]]


@READING
@given(
    shape=SHAPES,
    seed=SEEDS,
    window=WINDOWS,
    fraction=st.sampled_from([0.0, 0.3, 0.8]),
    training=st.booleans(),
    workers=st.sampled_from([0, 1, 4]),
)
def test_every_wanted_pair_comes_once_over_all_ranks(
    tiny_cache: Path,
    shape: StepLayout,
    seed: int,
    window: int,
    fraction: float,
    training: bool,
    workers: int,
) -> None:
    subset = PairSubset(which="training" if training else "held-out", fraction=fraction)
    wanted = np.flatnonzero(in_subset(CacheReader(tiny_cache).prompt_id, subset)).tolist()
    seen = []
    steps: dict[int, list[Batch]] = {}
    for rank in range(shape.world_size):
        batches = stream(
            tiny_cache,
            shape,
            seed=seed,
            rank=rank,
            window_blocks=window,
            subset=subset,
            workers=workers,
        )
        for number, batch in enumerate(batches):
            seen += pairs_in(tiny_cache, batch)
            steps.setdefault(number // shape.grad_accum, []).append(batch)
    assert sorted(seen) == wanted
    assert sorted(steps) == list(range(len(steps)))
    for step in steps.values():
        assert len(step) == shape.slots
        assert {batch.step_pairs for batch in step} == {sum(batch.pairs for batch in step)}


def test_a_process_without_pairs_in_the_last_step_gets_empty_batches(tiny_cache: Path) -> None:
    shape = StepLayout(batch_size=1, grad_accum=3, world_size=13)
    last = [list(stream(tiny_cache, shape, rank=rank))[-3:] for rank in range(13)]
    counts = [[batch.pairs for batch in batches] for batches in last]
    assert sum(map(sum, counts)) == 1
    for batches in last:
        for batch in batches:
            assert (batch.step_pairs, len(batch.labels)) == (1, int(batch.offsets[-1]))
            assert batch.states.shape[1:] == (3, 32)


@READING
@given(shape=SHAPES, seed=SEEDS, window=WINDOWS, epoch=st.integers(0, 3))
def test_contents_are_the_rows_of_the_cache(
    tiny_cache: Path, shape: StepLayout, seed: int, window: int, epoch: int
) -> None:
    whole = expected(tiny_cache, shape, seed=seed, window_blocks=window, epoch=epoch)
    for rank in range(shape.world_size):
        batches = stream(tiny_cache, shape, seed=seed, rank=rank, window_blocks=window, epoch=epoch)
        assert_same_batches(list(batches), whole.batches(shape, rank))


# Going on


def shared_by(shape: StepLayout, processes: int) -> StepLayout:
    """The same steps, shared by so many processes."""
    return replace(shape, grad_accum=shape.slots // processes, world_size=processes)


@EVERY_WORKERS
@EVERY_MODE
def test_any_step_can_be_the_first_with_any_number_of_processes(
    tiny_cache: Path, shape: StepLayout, workers: int
) -> None:
    """With four processes every batch of a process is a step."""
    for epoch in (0, 1):
        whole = expected(tiny_cache, shape, epoch=epoch, subset=RAGGED)
        assert whole.steps > 5
        if shape.batch_tokens is None:
            assert sum(batch.pairs for batch in whole.slots[-1]) == 1
        for processes in (1, 2, 4):
            shared = shared_by(shape, processes)
            for first in range(whole.steps + 1):
                # All ranks from everywhere would take long, and they do not meet.
                ranks = range(processes) if first in (0, 3) else [first % processes]
                for rank in ranks:
                    batches = stream(
                        tiny_cache,
                        shared,
                        epoch=epoch,
                        first_step=first,
                        rank=rank,
                        subset=RAGGED,
                        workers=workers,
                    )
                    assert_same_batches(list(batches), whole.batches(shared, rank, first))


@EVERY_WORKERS
@pytest.mark.parametrize("tokens", [None, 150])
def test_any_batch_can_be_the_first(tiny_cache: Path, workers: int, tokens: int | None) -> None:
    shape = StepLayout(batch_size=3, grad_accum=1, batch_tokens=tokens)
    whole = expected(tiny_cache, shape, window_blocks=2)
    for first in range(whole.steps + 1):
        batches = stream(tiny_cache, shape, first_step=first, window_blocks=2, workers=workers)
        assert_same_batches(list(batches), whole.batches(shape, first_step=first))


@READING
@given(data=st.data(), shape=st.sampled_from(sorted(MODES)), seed=SEEDS, window=WINDOWS)
def test_a_run_that_is_stopped_again_and_again_sees_the_same_batches(
    tiny_cache: Path, data: st.DataObject, shape: str, seed: int, window: int
) -> None:
    """Two epochs, each time with other processes and threads, stopped in the middle of a step."""
    for epoch in (0, 1):
        whole = expected(
            tiny_cache, MODES[shape], seed=seed, epoch=epoch, window_blocks=window, subset=RAGGED
        )
        step = 0
        while step < whole.steps:
            shared = shared_by(MODES[shape], data.draw(st.sampled_from([1, 2, 4])))
            done = data.draw(st.integers(1, whole.steps - step))
            begun = data.draw(st.integers(0, shared.grad_accum - 1))
            workers = data.draw(st.sampled_from([0, 1, 4]))
            for rank in range(shared.world_size):
                batches = prefetch(
                    stream(
                        tiny_cache,
                        shared,
                        seed=seed,
                        epoch=epoch,
                        first_step=step,
                        rank=rank,
                        window_blocks=window,
                        subset=RAGGED,
                        workers=workers,
                    )
                )
                count = done * shared.grad_accum + begun
                found = list(islice(batches, count))
                cast("Any", batches).close()
                assert_same_batches(found, whole.batches(shared, rank, step)[:count])
            step += done


# Workers of other kinds


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("processes", "workers"), [(0, 0), (0, 4), (1, 0), (2, 1), (4, 0)])
def test_a_data_loader_changes_nothing(tiny_cache: Path, processes: int, workers: int) -> None:
    shape = StepLayout(batch_size=2, grad_accum=3, world_size=2, batch_tokens=120)
    batches = stream(tiny_cache, shape, rank=1, first_step=1, workers=workers)
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=processes,
        multiprocessing_context="fork" if processes else None,
        timeout=PROCESS if processes else 0,  # an error, where a worker hangs
    )
    wanted = expected(tiny_cache, shape).batches(shape, 1, 1)
    assert not threads()  # what they hold, a forked process would wait for
    assert_same_batches(list(loader), wanted)


@EVERY_WORKERS
@EVERY_MODE
def test_reading_ahead_changes_nothing(tiny_cache: Path, shape: StepLayout, workers: int) -> None:
    shared = shared_by(shape, 2)
    batches = stream(tiny_cache, shared, rank=1, workers=workers, subset=RAGGED)
    wanted = list(batches)
    assert_same_batches(wanted, expected(tiny_cache, shared, subset=RAGGED).batches(shared, 1))
    for _ in range(2):  # a stream may be read again
        assert_same_batches(list(prefetch(batches)), wanted)
    assert not threads()


def test_batches_are_pinned_where_asked_for(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: replace(batch, step_pairs=-1))
    for pinned in (False, True):
        found = list(prefetch(stream(tiny_cache, MODES["pairs"]), pinned=pinned))
        assert {batch.step_pairs == -1 for batch in found} == {pinned}


# Ends


def threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("batches", "read"))]


def finish(action: Callable[[], object]) -> None:
    """Run something that may hang, which is an error, without hanging."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    runner.join(EVENT)
    assert not runner.is_alive()
    if failed:
        raise failed[0]


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
    nothing = PairSubset(which="held-out", fraction=0.0)
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


# Batches


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_moves_whole(tiny_cache: Path, device: str) -> None:
    batch = next(iter(stream(tiny_cache, StepLayout(batch_size=2, grad_accum=1))))
    moved = batch.to(torch.device(device))
    tensors = [*moved.rows.values(), moved.offsets]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert (moved.step_pairs, moved.pairs) == (batch.step_pairs, batch.pairs)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=6))
def test_response_sums_are_sums_over_each_answer(lengths: list[tuple[int, int]]) -> None:
    ends = np.cumsum([0, *(length for pair in lengths for length in pair)])
    values = torch.randn(int(ends[-1]), dtype=torch.float64)
    batch = Batch(rows={}, offsets=torch.from_numpy(ends), step_pairs=1)
    expected: tuple[list[Tensor], list[Tensor]] = ([], [])
    at = 0
    for pair in lengths:
        for side, length in enumerate(pair):
            expected[side].append(values[at : at + length].sum())
            at += length
    for found, wanted in zip(batch.response_sums(values), expected, strict=True):
        assert found.shape == (len(lengths),)
        torch.testing.assert_close(found.tolist(), [float(value) for value in wanted])


def test_response_sums_pass_gradients(tiny_cache: Path) -> None:
    batch = next(iter(stream(tiny_cache, StepLayout(batch_size=2, grad_accum=1))))
    values = torch.zeros(len(batch.labels), requires_grad=True)
    chosen, rejected = batch.response_sums(values)
    (gradient,) = torch.autograd.grad((chosen - 2 * rejected).sum(), values)
    lengths = batch.offsets.diff()
    assert torch.equal(gradient, torch.tensor([1.0, -2, 1, -2]).repeat_interleave(lengths))


def test_an_empty_batch_has_the_shapes_of_a_full_one(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    full = collate([(reader.read_block(0), 0)], reader.manifest, 5)
    empty = empty_like(full)
    assert (empty.pairs, empty.step_pairs, empty.offsets.tolist()) == (0, 5, [0])
    for path, tensor in empty.rows.items():
        assert tensor.shape == (0, *full.rows[path].shape[1:])
        assert tensor.dtype == full.rows[path].dtype


# Reads


def note_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    original = CacheReader.read_block

    def noting(reader: CacheReader, block: int, memory: BlockMemory | None = None) -> Block:
        read.append(block)
        return original(reader, block, memory)

    monkeypatch.setattr(CacheReader, "read_block", noting)
    return read


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
    """The step is longer than many windows, and its last slots are empty."""
    shape = StepLayout(batch_size=1, grad_accum=64, batch_tokens=tokens)
    read = note_reads(monkeypatch)
    batches = list(stream(tiny_cache, shape, window_blocks=1, workers=workers))
    assert len(batches) == 64
    assert sum(not batch.pairs for batch in batches) > 5
    assert sorted(read) == list(range(17))


def test_windows_before_the_first_step_are_not_read(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = CacheReader(tiny_cache).plan
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
    reader = CacheReader(tiny_cache)
    subset = PairSubset(which="held-out", fraction=0.3)
    pairs = np.flatnonzero(in_subset(reader.prompt_id, subset))
    blocks = set(np.searchsorted(reader.plan.block_start, pairs, side="right") - 1)
    assert 0 < len(blocks) < 17
    for window in (1, 4):
        with monkeypatch.context() as patch:
            read = note_reads(patch)
            list(stream(tiny_cache, ONE, window_blocks=window, subset=subset, workers=workers))
        assert sorted(read) == sorted(blocks)


# Memory


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
