"""The order pairs are trained in: a pure function of the plan, the seed and the epoch.

Pairs already lie in a fixed random order on disk. Each epoch visits the blocks in a new random
order, and mixes pairs inside a window of consecutive blocks. Steps are cut from that order, and a
step into micro-batches, `grad_accum` for each process. So the order does not depend on how many
processes read it, and any step can be the first: what lies before it need not be read.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mav.cache_schema.plan import BlockPlan

WINDOW_BLOCKS: Final = 8


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the pairs of an optimizer step are shared out.

    Attributes:
        batch_size: Pairs in a micro-batch, where `batch_tokens` is None.
        grad_accum: Micro-batches of each process in a step.
        world_size: Processes.
        rank: This process.
        batch_tokens: Most response tokens in a micro-batch, instead of a number of pairs. A pair
            that is longer is a micro-batch by itself.
    """

    batch_size: int
    grad_accum: int
    world_size: int = 1
    rank: int = 0
    batch_tokens: int | None = None

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step over all processes."""
        return self.grad_accum * self.world_size

    def micro_batch_index(self, number: int) -> int:
        """Return which micro-batch of the step is this process's one of a number."""
        return number * self.world_size + self.rank


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The pairs of an epoch in order, and where windows, steps and micro-batches begin.

    Attributes:
        layout: How each step is shared out.
        blocks: Blocks of each window that have a wanted pair.
        pairs: int64 [n], the pairs.
        window_start: int64 [windows + 1], index into `pairs` of each window's first, then n.
        micro_batch_start: int64 [steps, micro-batches + 1], indices into `pairs` where the
            micro-batches of a step begin, then where the step ends. Some may be empty.
    """

    layout: StepLayout
    blocks: tuple[NDArray[np.int64], ...]
    pairs: NDArray[np.int64]
    window_start: NDArray[np.int64]
    micro_batch_start: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.micro_batch_start)

    @cached_property
    def window_of(self) -> NDArray[np.int64]:
        """Window of each pair, int64 [n]."""
        return np.repeat(np.arange(len(self.blocks)), np.diff(self.window_start))


class EpochOrders:
    """The orders of a run's epochs, each of which is computed once and forgotten with its epoch."""

    def __init__(
        self, plan: BlockPlan, wanted: NDArray[np.bool_], layout: StepLayout, *, seed: int
    ) -> None:
        """Describe the orders.

        Args:
            plan: Where pairs lie.
            wanted: bool [pairs], which of them.
            layout: How steps are shared out.
            seed: Seed of the orders.
        """
        self._plan = plan
        self._wanted = wanted
        self._layout = layout
        self._seed = seed
        self._orders: dict[int, EpochOrder] = {}

    def steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch, without its order where pairs are counted."""
        if self._layout.batch_tokens is not None:
            return self._computed(epoch).steps
        pairs_per_step = self._layout.batch_size * self._layout.micro_batches
        return -(-int(self._wanted.sum()) // pairs_per_step)

    def order(self, epoch: int) -> EpochOrder:
        """Return the order of an epoch; epochs before it are not asked for again."""
        order = self._computed(epoch)
        self._orders = {number: kept for number, kept in self._orders.items() if number >= epoch}
        return order

    def _computed(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = order_epoch(
                self._plan, self._wanted, self._layout, seed=self._seed, epoch=epoch
            )
        return self._orders[epoch]


def order_epoch(
    plan: BlockPlan,
    wanted: NDArray[np.bool_] | None,
    layout: StepLayout,
    *,
    seed: int,
    epoch: int,
    window_blocks: int = WINDOW_BLOCKS,
) -> EpochOrder:
    """Return the order of an epoch.

    Args:
        plan: Where pairs lie.
        wanted: bool [pairs], which of them; all if None.
        layout: How steps are shared out; the order is the same for every rank.
        seed: Seed of the order.
        epoch: Epoch, counted from 0.
        window_blocks: Blocks that are mixed.
    """
    if wanted is None:
        wanted = np.ones(plan.pairs, np.bool_)
    blocks, parts = [], []
    for number, window in enumerate(shuffled_windows(plan, seed, epoch, window_blocks)):
        pairs_of_blocks = [_wanted_of(plan, int(block), wanted) for block in window]
        pairs = np.concatenate(pairs_of_blocks)
        # From 1: NumPy takes [seed, epoch, 0] and [seed, epoch] for the same seed.
        order = np.random.default_rng([seed, epoch, 1 + number]).permutation(len(pairs))
        blocks.append(window[[len(of_block) > 0 for of_block in pairs_of_blocks]])
        parts.append(pairs[order])
    every = np.concatenate([np.empty(0, np.int64), *parts])
    tokens = plan.response_length[every].sum(axis=1, dtype=np.int64)
    return EpochOrder(
        layout=layout,
        blocks=tuple(blocks),
        pairs=every,
        window_start=np.cumsum([0, *map(len, parts)]),
        micro_batch_start=_cut(tokens, layout),
    )


def shuffled_windows(
    plan: BlockPlan, seed: int, epoch: int, window_blocks: int
) -> list[NDArray[np.int64]]:
    """Return the blocks of each window, in the order of one epoch.

    Args:
        plan: Where pairs lie.
        seed: Seed of the order.
        epoch: Epoch, counted from 0.
        window_blocks: Blocks of a window; the last one may have fewer.
    """
    order = np.random.default_rng([seed, epoch]).permutation(plan.blocks)
    return [order[at : at + window_blocks] for at in range(0, plan.blocks, window_blocks)]


def _wanted_of(plan: BlockPlan, block: int, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    pairs = plan.pairs_of(block)
    return pairs.start + np.flatnonzero(wanted[pairs.start : pairs.stop])


def _cut(tokens: NDArray[np.int64], layout: StepLayout) -> NDArray[np.int64]:
    """Cut pairs of so many tokens each, in order, into steps of micro-batches."""
    count, parts = len(tokens), layout.micro_batches
    if layout.batch_tokens is not None:
        starts = _fill(tokens, layout.batch_tokens)
        steps = -(-len(starts) // parts)
        # Each ends where the next begins; those left over at the end of the epoch are empty.
        bounds = np.full(steps * parts + 1, count, np.int64)
        bounds[: len(starts)] = starts
        by_step: NDArray[np.int64] = bounds[
            np.arange(steps)[:, None] * parts + np.arange(parts + 1)
        ]
        return by_step
    step = layout.batch_size * parts
    by_step = np.arange(count // step)[:, None] * step + np.arange(parts + 1) * layout.batch_size
    if left := count % step:
        # The pairs of the short step at the end are spread evenly.
        last = count - left + np.linspace(0, left, parts + 1).round().astype(np.int64)
        by_step = np.concatenate([by_step, last[None]])
    return by_step


def _fill(tokens: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where each group of at most so many tokens begins, at least one pair in each."""
    ends = np.cumsum(tokens)
    starts = []
    at = 0
    while at < len(tokens):
        starts.append(at)
        bound = (ends[at - 1] if at else 0) + most
        at = max(at + 1, int(np.searchsorted(ends, bound, side="right")))
    return np.array(starts, dtype=np.int64)
