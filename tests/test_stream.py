"""The order pairs are trained in, and how they are shared out."""

import weakref
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache_schema import Block, CacheReader
from pipeline.batch import Batch, collate, empty_like
from pipeline.held_out import PairSubset, in_subset
from pipeline.stream import PreferenceStream, StepShape, read_ahead, shuffled_windows

ALL = PairSubset(which="all")
# The cache is read only, so examples may share it; reading is slow on a busy machine, and
# shrinking would read for minutes.
READING = settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SHAPES = st.builds(
    StepShape,
    batch_size=st.integers(1, 9),
    grad_accum=st.integers(1, 4),
    world_size=st.integers(1, 3),
)
SEEDS = st.integers(0, 2**31)
WINDOWS = st.integers(1, 20)


@cache
def pair_of_state(root: Path) -> dict[bytes, int]:
    """First state of the chosen answer -> pair; prompts all differ, so the states do."""
    reader = CacheReader(root)
    found = {}
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        for index, pair in enumerate(block.pairs):
            found[block.rows["hidden_states"][block.offsets[2 * index]].tobytes()] = pair
    assert len(found) == reader.plan.pairs
    return found


def pairs_in(root: Path, batch: Batch) -> list[int]:
    known = pair_of_state(root)
    first = batch.offsets[:-1:2]
    return [known[batch.states[token].numpy().tobytes()] for token in first]


def stream(
    root: Path,
    shape: StepShape,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    rank: int = 0,
    window_blocks: int = 4,
    subset: PairSubset = ALL,
) -> PreferenceStream:
    ranked = StepShape(
        batch_size=shape.batch_size,
        grad_accum=shape.grad_accum,
        world_size=shape.world_size,
        rank=rank,
    )
    return PreferenceStream(
        root,
        subset,
        ranked,
        seed=seed,
        epoch=epoch,
        first_step=first_step,
        window_blocks=window_blocks,
    )


def order(
    root: Path, *, seed: int = 0, epoch: int = 0, window_blocks: int = 4, batch_size: int = 1
) -> list[int]:
    shape = StepShape(batch_size=batch_size, grad_accum=1)
    batches = stream(root, shape, seed=seed, epoch=epoch, window_blocks=window_blocks)
    return [pair for batch in batches for pair in pairs_in(root, batch)]


def assert_same_batches(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.step_pairs == other.step_pairs
        assert torch.equal(one.offsets, other.offsets)
        assert one.rows.keys() == other.rows.keys()
        for path in one.rows:
            assert torch.equal(one.rows[path], other.rows[path])


@READING
@given(
    shape=SHAPES,
    seed=SEEDS,
    window=WINDOWS,
    fraction=st.sampled_from([0.0, 0.3, 0.8]),
    training=st.booleans(),
)
def test_every_wanted_pair_comes_once_over_all_ranks(
    tiny_cache: Path, shape: StepShape, seed: int, window: int, fraction: float, training: bool
) -> None:
    subset = PairSubset(which="training" if training else "held-out", fraction=fraction)
    reader = CacheReader(tiny_cache)
    wanted = np.flatnonzero(in_subset(reader.prompt_id, subset)).tolist()
    steps = -(-len(wanted) // shape.pairs)
    seen = []
    sizes = np.zeros((steps, shape.grad_accum, shape.world_size), int)
    for rank in range(shape.world_size):
        batches = list(
            stream(tiny_cache, shape, seed=seed, rank=rank, window_blocks=window, subset=subset)
        )
        assert len(batches) == steps * shape.grad_accum
        for number, batch in enumerate(batches):
            step, micro = divmod(number, shape.grad_accum)
            sizes[step, micro, rank] = batch.pairs
            assert batch.step_pairs == min(shape.pairs, len(wanted) - step * shape.pairs)
            seen += pairs_in(tiny_cache, batch)
    assert sorted(seen) == wanted
    assert (sizes[: len(wanted) // shape.pairs] == shape.batch_size).all()
    if steps:
        # The short step at the end is spread evenly.
        assert sizes[-1].max() - sizes[-1].min() <= 1


def test_a_process_without_pairs_in_the_last_step_gets_empty_batches(tiny_cache: Path) -> None:
    shape = StepShape(batch_size=13, grad_accum=3, world_size=2)
    last = [list(stream(tiny_cache, shape, rank=rank))[-3:] for rank in range(2)]
    assert sum(batch.pairs for batches in last for batch in batches) == 40
    shape = StepShape(batch_size=1, grad_accum=3, world_size=13)
    last = [list(stream(tiny_cache, shape, rank=rank))[-3:] for rank in range(13)]
    counts = [[batch.pairs for batch in batches] for batches in last]
    assert sum(map(sum, counts)) == 1
    for batches in last:
        for batch in batches:
            assert (batch.step_pairs, len(batch.labels)) == (1, int(batch.offsets[-1]))
            assert batch.states.shape[1:] == (3, 32)


@READING
@given(shape=SHAPES, seed=SEEDS)
def test_the_ranks_together_take_the_step_of_one_process(
    tiny_cache: Path, shape: StepShape, seed: int
) -> None:
    def steps(one: StepShape) -> list[set[int]]:
        found: list[set[int]] = []
        for rank in range(one.world_size):
            for number, batch in enumerate(stream(tiny_cache, one, seed=seed, rank=rank)):
                step = number // one.grad_accum
                if step == len(found):
                    found.append(set())
                found[step].update(pairs_in(tiny_cache, batch))
        return found

    assert steps(shape) == steps(StepShape(batch_size=shape.pairs, grad_accum=1))


def test_the_order_is_a_function_of_seed_and_epoch(tiny_cache: Path) -> None:
    orders = [order(tiny_cache, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    again = [order(tiny_cache, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == again
    assert len({tuple(found) for found in orders}) == 4
    assert list(range(40)) not in orders


def test_blocks_come_in_another_order_each_epoch(tiny_cache: Path) -> None:
    plan = CacheReader(tiny_cache).plan
    orders = {
        tuple(np.concatenate(shuffled_windows(plan, seed, epoch, 4)).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6
    assert tuple(range(plan.blocks)) not in orders


def permutations(root: Path, seed: int, epoch: int, window_blocks: int) -> list[tuple[int, ...]]:
    """How the pairs of each window are mixed: their places in the window's own order."""
    plan = CacheReader(root).plan
    left = order(root, seed=seed, epoch=epoch, window_blocks=window_blocks)
    found = []
    for window in shuffled_windows(plan, seed, epoch, window_blocks):
        listed = [pair for block in window for pair in plan.pairs_of(int(block))]
        found.append(tuple(listed.index(pair) for pair in left[: len(listed)]))
        del left[: len(listed)]
    return found


def test_pairs_are_mixed_anew_each_epoch(tiny_cache: Path) -> None:
    whole = [permutations(tiny_cache, *when, 17)[0] for when in ((0, 0), (0, 1), (1, 0))]
    assert len(set(whole)) == 3
    assert all(sorted(mixed) == list(range(40)) != list(mixed) for mixed in whole)


def test_pairs_are_mixed_otherwise_in_each_window(tiny_cache: Path) -> None:
    alike = [mixed for mixed in permutations(tiny_cache, 0, 0, 1) if len(mixed) == 3]
    assert len(alike) > 4
    assert len(set(alike)) > 1


def test_the_order_does_not_depend_on_the_batches(tiny_cache: Path) -> None:
    assert order(tiny_cache, batch_size=1) == order(tiny_cache, batch_size=7)


@READING
@given(blocks=WINDOWS, seed=SEEDS, epoch=st.integers(0, 3))
def test_pairs_are_mixed_inside_windows_of_blocks(
    tiny_cache: Path, blocks: int, seed: int, epoch: int
) -> None:
    plan = CacheReader(tiny_cache).plan
    windows = shuffled_windows(plan, seed, epoch, blocks)
    assert sorted(np.concatenate(windows).tolist()) == list(range(plan.blocks))
    assert [len(window) for window in windows[:-1]] == [blocks] * (len(windows) - 1)
    found = order(tiny_cache, seed=seed, epoch=epoch, window_blocks=blocks)
    for window in windows:
        inside = sorted(pair for block in window for pair in plan.pairs_of(int(block)))
        assert sorted(found[: len(inside)]) == inside
        del found[: len(inside)]
    assert not found


def test_a_window_mixes_pairs_of_its_blocks(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    edges = reader.plan.block_start
    blocks = np.searchsorted(edges, order(tiny_cache, window_blocks=17), side="right")
    # Read one after the other, blocks would change 16 times.
    assert (np.diff(blocks) != 0).sum() > 30


@settings(READING, max_examples=6)
@given(shape=SHAPES, seed=SEEDS, window=WINDOWS, data=st.data())
def test_any_step_can_be_the_first(
    tiny_cache: Path, shape: StepShape, seed: int, window: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, shape.world_size - 1))
    subset = PairSubset(which="training", fraction=data.draw(st.sampled_from([0.0, 0.3])))

    def from_step(first: int) -> list[Batch]:
        return list(
            stream(
                tiny_cache,
                shape,
                seed=seed,
                epoch=2,
                first_step=first,
                rank=rank,
                window_blocks=window,
                subset=subset,
            )
        )

    whole = from_step(0)
    steps = len(whole) // shape.grad_accum
    for first in range(steps + 1):
        assert_same_batches(from_step(first), whole[first * shape.grad_accum :])


def test_contents_are_the_rows_of_the_cache(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    blocks = [reader.read_block(number) for number in range(reader.plan.blocks)]
    for batch in stream(tiny_cache, StepShape(batch_size=3, grad_accum=2), seed=5):
        expected_offsets = [0]
        for place, pair in enumerate(pairs_in(tiny_cache, batch)):
            at = int(np.searchsorted(reader.plan.block_start, pair, side="right")) - 1
            lengths = reader.plan.response_length[pair].tolist()
            first = int(reader.plan.response_start[pair, 0]) - reader.plan.first_row(at)
            start, stop = (int(batch.offsets[2 * place + side]) for side in (0, 2))
            for path, rows in blocks[at].rows.items():
                stored = torch.from_numpy(rows[first : first + sum(lengths)])
                assert torch.equal(batch.rows[path][start:stop], stored)
            for length in lengths:
                expected_offsets.append(expected_offsets[-1] + length)
        assert batch.offsets.tolist() == expected_offsets
        assert set(batch.rows) == {"hidden_states", "labels", "base_logprobs"}


def test_reading_ahead_changes_nothing(tiny_cache: Path) -> None:
    batches = stream(tiny_cache, StepShape(batch_size=4, grad_accum=3, world_size=2), rank=1)
    expected = list(batches)
    assert_same_batches(list(read_ahead(batches, 0)), expected)
    assert_same_batches(list(read_ahead(batches, 1)), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_moves_whole(tiny_cache: Path, device: str) -> None:
    batch = next(iter(stream(tiny_cache, StepShape(batch_size=2, grad_accum=1))))
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
    batch = next(iter(stream(tiny_cache, StepShape(batch_size=2, grad_accum=1))))
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


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    original = CacheReader.read_block

    def counting(reader: CacheReader, block: int) -> Block:
        read.append(block)
        return original(reader, block)

    monkeypatch.setattr(CacheReader, "read_block", counting)
    return read


def test_every_block_is_read_once_an_epoch(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    list(stream(tiny_cache, StepShape(batch_size=3, grad_accum=1)))
    assert sorted(read) == list(range(17))


def test_windows_before_the_first_step_are_not_read(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = CacheReader(tiny_cache).plan
    windows = shuffled_windows(plan, 3, 1, 4)
    ends = np.cumsum([sum(len(plan.pairs_of(int(b))) for b in window) for window in windows])
    read = count_reads(monkeypatch)
    for first in range(plan.pairs + 1):
        read.clear()
        shape = StepShape(batch_size=1, grad_accum=1)
        list(stream(tiny_cache, shape, seed=3, epoch=1, first_step=first))
        left = windows[int(np.searchsorted(ends, first, side="right")) :]
        assert read == [int(block) for window in left for block in window]


def test_windows_without_a_wanted_pair_are_not_read(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CacheReader(tiny_cache)
    subset = PairSubset(which="held-out", fraction=0.3)
    pairs = np.flatnonzero(in_subset(reader.prompt_id, subset))
    blocks = set(np.searchsorted(reader.plan.block_start, pairs, side="right") - 1)
    assert 0 < len(blocks) < 17
    read = count_reads(monkeypatch)
    shape = StepShape(batch_size=1, grad_accum=1)
    list(stream(tiny_cache, shape, window_blocks=1, subset=subset))
    assert set(read) == blocks


def test_no_more_than_a_window_of_blocks_is_in_memory(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block more may be held by the pair that was given last, and one is being read."""
    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    most = 0
    original = CacheReader.read_block

    class Tracked(Block):
        __hash__ = object.__hash__

    def tracking(reader: CacheReader, number: int) -> Block:
        nonlocal most
        found = original(reader, number)
        block = Tracked(number=number, pairs=found.pairs, offsets=found.offsets, rows=found.rows)
        alive.add(block)
        most = max(most, len(alive))
        return block

    monkeypatch.setattr(CacheReader, "read_block", tracking)
    list(stream(tiny_cache, StepShape(batch_size=1, grad_accum=1), window_blocks=4))
    assert most <= 4 + 1
