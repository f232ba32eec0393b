"""The order of an epoch, and how it is cut into steps and micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mav.cache_schema.plan import BlockPlan, plan_blocks
from mav.pipeline.loader import sampler
from mav.pipeline.loader.sampler import (
    WINDOW_BLOCKS,
    EpochOrder,
    EpochOrders,
    StepLayout,
    order_epoch,
    shuffled_windows,
)

SHAPES = st.builds(
    StepLayout,
    batch_size=st.integers(1, 9),
    grad_accum=st.integers(1, 4),
    world_size=st.integers(1, 3),
    batch_tokens=st.none() | st.integers(1, 60),
)
IN_PAIRS = SHAPES.map(lambda shape: replace(shape, batch_tokens=None))
IN_TOKENS = st.builds(
    lambda shape, tokens: replace(shape, batch_tokens=tokens), SHAPES, st.integers(1, 60)
)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an order is a function of, but for the shape of its steps."""

    plan: BlockPlan
    wanted: NDArray[np.bool_]
    seed: int = 0
    epoch: int = 0
    window_blocks: int = 4

    def order(self, shape: StepLayout) -> EpochOrder:
        return order_epoch(
            self.plan,
            self.wanted,
            shape,
            seed=self.seed,
            epoch=self.epoch,
            window_blocks=self.window_blocks,
        )

    def tokens(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.plan.response_length[pairs].sum(axis=1, dtype=np.int64)
        return found

    def blocks(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.plan.block_start, pairs, side="right") - 1


def a_plan(pairs: int, *, longest: int = 10, block_tokens: int = 30, seed: int = 0) -> BlockPlan:
    lengths = np.random.default_rng(seed).integers(1, longest + 1, (pairs, 2), np.int32)
    return plan_blocks(lengths, block_tokens)


@st.composite
def epochs(draw: st.DrawFn) -> Epoch:
    longest = draw(st.integers(1, 20))
    plan = a_plan(
        draw(st.integers(1, 60)),
        longest=longest,
        block_tokens=draw(st.integers(2 * longest, 90)),
        seed=draw(st.integers(0, 99)),
    )
    share = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    return Epoch(
        plan=plan,
        wanted=np.random.default_rng(draw(st.integers(0, 99))).random(plan.pairs) < share,
        seed=draw(st.integers(0, 2**40)),
        epoch=draw(st.integers(0, 3)),
        window_blocks=draw(st.integers(1, 20)),
    )


def forty(**options: int) -> Epoch:
    """Forty pairs in twenty blocks or so, all of them wanted."""
    return Epoch(plan=a_plan(40), wanted=np.ones(40, np.bool_), **options)


ONE = StepLayout(batch_size=1, grad_accum=1)


def all_micro_batches(order: EpochOrder) -> Iterator[NDArray[np.int64]]:
    """The pairs of every micro-batch, step by step."""
    for bounds in order.micro_batch_start:
        for start, end in pairwise(bounds.tolist()):
            yield order.pairs[start:end]


def same_orders(one: EpochOrder, other: EpochOrder) -> bool:
    """Whether pairs and windows are the same; steps may be others."""
    return (
        np.array_equal(one.pairs, other.pairs)
        and np.array_equal(one.window_start, other.window_start)
        and len(one.blocks) == len(other.blocks)
        and all(map(np.array_equal, one.blocks, other.blocks))
    )


# Steps and micro-batches


@given(epoch=epochs(), shape=SHAPES)
def test_every_wanted_pair_comes_once(epoch: Epoch, shape: StepLayout) -> None:
    order = epoch.order(shape)
    given = np.concatenate([np.empty(0, np.int64), *all_micro_batches(order)])
    assert np.array_equal(given, order.pairs)
    assert sorted(given.tolist()) == np.flatnonzero(epoch.wanted).tolist()


@given(epoch=epochs(), shape=SHAPES)
def test_steps_follow_each_other_without_gaps(epoch: Epoch, shape: StepLayout) -> None:
    order = epoch.order(shape)
    starts = order.micro_batch_start
    assert starts.dtype == np.int64
    assert starts.shape == (order.steps, shape.micro_batches + 1)
    assert (np.diff(starts, axis=1) >= 0).all()
    assert np.array_equal(starts[1:, 0], starts[:-1, -1])
    assert (starts[:, 0] < starts[:, -1]).all()  # no step is empty
    assert (order.steps == 0) == (len(order.pairs) == 0)
    if order.steps:
        assert (starts[0, 0], starts[-1, -1]) == (0, len(order.pairs))


@given(epoch=epochs(), shape=IN_PAIRS)
def test_micro_batches_have_as_many_pairs_as_asked_for(epoch: Epoch, shape: StepLayout) -> None:
    order = epoch.order(shape)
    step = shape.batch_size * shape.micro_batches
    sizes = np.diff(order.micro_batch_start, axis=1)
    assert order.steps == -(-len(order.pairs) // step)
    assert (sizes[: len(order.pairs) // step] == shape.batch_size).all()
    if order.steps:
        # The short step at the end is spread evenly.
        assert sizes[-1].max() - sizes[-1].min() <= 1


@given(epoch=epochs(), shape=IN_TOKENS)
def test_micro_batches_are_as_large_as_their_tokens_allow(epoch: Epoch, shape: StepLayout) -> None:
    assert shape.batch_tokens is not None
    order = epoch.order(shape)
    parts = [epoch.tokens(pairs) for pairs in all_micro_batches(order)]
    used = [part for part in parts if len(part)]
    # Only the last micro-batches of an epoch are empty.
    assert [len(part) for part in parts[len(used) :]] == [0] * (len(parts) - len(used))
    assert len(parts) - len(used) < shape.micro_batches
    for part in used:
        assert part.sum() <= shape.batch_tokens or len(part) == 1
    for part, following in pairwise(used):
        assert part.sum() + following[0] > shape.batch_tokens


@pytest.mark.parametrize(
    ("most", "parts"),
    [(1, [1] * 5), (8, [1] * 5), (15, [1] * 5), (16, [2, 2, 1]), (39, [4, 1]), (40, [5])],
)
def test_a_micro_batch_is_never_empty_while_pairs_are_left(most: int, parts: list[int]) -> None:
    plan = plan_blocks(np.full((5, 2), 4, np.int32), 8)
    epoch = Epoch(plan=plan, wanted=np.ones(5, np.bool_))
    found = epoch.order(StepLayout(batch_size=1, grad_accum=1, batch_tokens=most))
    assert np.diff(found.micro_batch_start, axis=1).ravel().tolist() == parts


@given(data=st.data(), epoch=epochs(), shape=SHAPES)
def test_the_order_does_not_depend_on_the_process(
    data: st.DataObject, epoch: Epoch, shape: StepLayout
) -> None:
    rank = data.draw(st.integers(0, shape.world_size - 1))
    one, other = epoch.order(shape), epoch.order(replace(shape, rank=rank))
    assert same_orders(one, other)
    assert np.array_equal(one.micro_batch_start, other.micro_batch_start)


@given(epoch=epochs(), shape=SHAPES, other=SHAPES)
def test_the_order_does_not_depend_on_the_steps(
    epoch: Epoch, shape: StepLayout, other: StepLayout
) -> None:
    assert same_orders(epoch.order(shape), epoch.order(other))


@given(data=st.data(), epoch=epochs(), parts=st.integers(1, 12), batch=st.integers(1, 5))
@pytest.mark.parametrize("in_tokens", [False, True])
def test_a_step_has_the_same_pairs_however_it_is_shared_out(
    in_tokens: bool, data: st.DataObject, epoch: Epoch, parts: int, batch: int
) -> None:
    tokens = data.draw(st.integers(1, 60)) if in_tokens else None
    processes = data.draw(st.sampled_from([n for n in range(1, parts + 1) if parts % n == 0]))
    alone = StepLayout(batch_size=batch, grad_accum=parts, batch_tokens=tokens)
    shared = replace(alone, grad_accum=parts // processes, world_size=processes)
    one, other = epoch.order(alone), epoch.order(shared)
    assert np.array_equal(one.micro_batch_start, other.micro_batch_start)
    if not in_tokens:
        # Micro-batches may be larger too, where there are fewer of them.
        whole = epoch.order(StepLayout(batch_size=batch * parts, grad_accum=1))
        assert np.array_equal(one.micro_batch_start[:, [0, -1]], whole.micro_batch_start)


@given(shape=SHAPES)
def test_every_micro_batch_is_that_of_one_process(shape: StepLayout) -> None:
    ranks = [replace(shape, rank=rank) for rank in range(shape.world_size)]
    found = [one.micro_batch_index(micro) for one in ranks for micro in range(shape.grad_accum)]
    assert sorted(found) == list(range(shape.micro_batches))
    # All processes are at neighbouring pairs at the same time.
    assert [one.micro_batch_index(0) for one in ranks] == list(range(shape.world_size))


# Windows


@given(epoch=epochs(), shape=SHAPES)
def test_pairs_are_mixed_inside_windows_of_blocks(epoch: Epoch, shape: StepLayout) -> None:
    order = epoch.order(shape)
    windows = shuffled_windows(epoch.plan, epoch.seed, epoch.epoch, epoch.window_blocks)
    assert sorted(np.concatenate(windows).tolist()) == list(range(epoch.plan.blocks))
    full = [len(window) for window in windows[:-1]]
    assert full == [epoch.window_blocks] * (len(windows) - 1)
    assert 0 < len(windows[-1]) <= epoch.window_blocks

    assert len(order.blocks) == len(windows) == len(order.window_start) - 1
    assert (order.window_start[0], order.window_start[-1]) == (0, len(order.pairs))
    assert len(order.window_of) == len(order.pairs)
    for number, window in enumerate(windows):
        part = slice(order.window_start[number], order.window_start[number + 1])
        inside = np.concatenate([np.array(epoch.plan.pairs_of(int(block))) for block in window])
        assert sorted(order.pairs[part].tolist()) == sorted(inside[epoch.wanted[inside]].tolist())
        assert (order.window_of[part] == number).all()
        used = set(epoch.blocks(order.pairs[part]).tolist())
        assert order.blocks[number].tolist() == [b for b in window.tolist() if b in used]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def orders() -> list[tuple[int, ...]]:
        return [
            tuple(forty(seed=seed, epoch=epoch).order(ONE).pairs.tolist())
            for seed in (0, 1)
            for epoch in (0, 1)
        ]

    assert orders() == orders()
    assert len(set(orders())) == 4
    assert tuple(range(40)) not in orders()


def test_blocks_come_in_another_order_each_epoch() -> None:
    plan = a_plan(40)
    orders = {
        tuple(np.concatenate(shuffled_windows(plan, seed, epoch, 4)).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 6
    assert tuple(range(plan.blocks)) not in orders


def permutations(epoch: Epoch) -> list[tuple[int, ...]]:
    """How the pairs of each window are mixed: their places in the window's own order."""
    order = epoch.order(ONE)
    found = []
    for number, window in enumerate(order.blocks):
        listed = [pair for block in window for pair in epoch.plan.pairs_of(int(block))]
        mixed = order.pairs[order.window_start[number] : order.window_start[number + 1]]
        found.append(tuple(listed.index(pair) for pair in mixed))
    return found


def test_pairs_are_mixed_anew_each_epoch() -> None:
    whole = [
        permutations(forty(seed=seed, epoch=epoch, window_blocks=40))[0]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(whole)) == 3
    assert all(sorted(mixed) == list(range(40)) != list(mixed) for mixed in whole)


def test_pairs_are_mixed_otherwise_in_each_window() -> None:
    plan = plan_blocks(np.ones((40, 2), np.int32), 8)
    mixed = permutations(Epoch(plan=plan, wanted=np.ones(40, np.bool_), window_blocks=2))
    assert [len(one) for one in mixed] == [8] * 5
    assert len(set(mixed)) == 5


@pytest.mark.parametrize("window", [0, 1])
def test_pairs_are_mixed_otherwise_than_blocks(window: int) -> None:
    """NumPy's seeds `[a, b]` and `[a, b, 0]` are one and the same."""
    plan = plan_blocks(np.ones((80, 2), np.int32), 2)
    epoch = Epoch(plan=plan, wanted=np.ones(80, np.bool_), window_blocks=40)
    blocks = np.random.default_rng([0, 0]).permutation(40)
    assert permutations(epoch)[window] != tuple(blocks.tolist())


def test_a_window_mixes_pairs_of_its_blocks() -> None:
    epoch = forty(window_blocks=40)
    blocks = epoch.blocks(epoch.order(ONE).pairs)
    # Read one after the other, blocks would change less than 20 times.
    assert epoch.plan.blocks <= 20
    assert (np.diff(blocks) != 0).sum() > 30


# All epochs of a run


@given(epoch=epochs(), shape=SHAPES)
def test_steps_are_counted_as_the_orders_have_them(epoch: Epoch, shape: StepLayout) -> None:
    orders = EpochOrders(epoch.plan, epoch.wanted, shape, seed=epoch.seed)
    own = replace(epoch, window_blocks=WINDOW_BLOCKS)
    expected = [replace(own, epoch=number).order(shape) for number in range(3)]
    assert [orders.steps(number) for number in range(3)] == [order.steps for order in expected]
    for number in range(3):
        assert same_orders(orders.order(number), expected[number])


@pytest.mark.parametrize("shape", [ONE, replace(ONE, batch_tokens=9)], ids=["pairs", "tokens"])
def test_each_order_is_computed_once(shape: StepLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def noting(*arguments: Any, **options: Any) -> EpochOrder:
        computed.append(options["epoch"])
        return order_epoch(*arguments, **options)

    monkeypatch.setattr(sampler, "order_epoch", noting)
    epoch = forty()
    orders = EpochOrders(epoch.plan, epoch.wanted, shape, seed=0)
    assert all(orders.steps(number) for number in range(3))
    assert computed == ([] if shape.batch_tokens is None else [0, 1, 2])
    for number in (0, 0, 1, 2, 2):
        orders.order(number)
    assert computed == [0, 1, 2]
    assert orders._orders.keys() == {2}
