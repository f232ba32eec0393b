"""The order pairs are trained in: a pure function of the plan, the seed and the epoch.

Pairs already lie in a fixed random order on disk. Each epoch visits the blocks in a new random
order, and mixes pairs inside a window of consecutive blocks. Steps are cut from that order, and a
step into slots, one for each micro-batch of each process. So the order does not depend on how many
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
        batch_tokens: Most response tokens in a micro-batch, in place of a number of pairs. A pair
            that is longer is a micro-batch by itself.
    """

    batch_size: int
    grad_accum: int
    world_size: int = 1
    rank: int = 0
    batch_tokens: int | None = None

    @property
    def slots(self) -> int:
        """Micro-batches of a step over all processes."""
        return self.grad_accum * self.world_size

    def slot(self, micro: int) -> int:
        """Return the slot of a micro-batch of this process."""
        return micro * self.world_size + self.rank


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The pairs of an epoch in order, and where windows, steps and slots begin.

    Attributes:
        blocks: Blocks of each window that have a wanted pair.
        pairs: int64 [n], the pairs.
        window_start: int64 [windows + 1], place in `pairs` of each window's first, then n.
        slot_start: int64 [steps, slots + 1], places in `pairs` where slots begin, then where the
            step ends. Slots may be empty.
    """

    blocks: tuple[NDArray[np.int64], ...]
    pairs: NDArray[np.int64]
    window_start: NDArray[np.int64]
    slot_start: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.slot_start)

    @cached_property
    def window_of(self) -> NDArray[np.int64]:
        """Window of each pair, int64 [n]."""
        return np.repeat(np.arange(len(self.blocks)), np.diff(self.window_start))


def order_epoch(
    plan: BlockPlan,
    wanted: NDArray[np.bool_],
    shape: StepLayout,
    *,
    seed: int,
    epoch: int,
    window_blocks: int = WINDOW_BLOCKS,
) -> EpochOrder:
    """Return the order of an epoch.

    Args:
        plan: Where pairs lie.
        wanted: [pairs], which of them.
        shape: How steps are shared out; the process is of no account.
        seed: Seed of the order.
        epoch: Epoch, counted from 0.
        window_blocks: Blocks that are mixed.
    """
    blocks, parts = [], []
    for number, window in enumerate(shuffled_windows(plan, seed, epoch, window_blocks)):
        found = [_wanted_of(plan, int(block), wanted) for block in window]
        pairs = np.concatenate(found)
        # From 1: NumPy takes [seed, epoch, 0] and [seed, epoch] for the same seed.
        order = np.random.default_rng([seed, epoch, 1 + number]).permutation(len(pairs))
        blocks.append(window[[len(some) > 0 for some in found]])
        parts.append(pairs[order])
    every = np.concatenate([np.empty(0, np.int64), *parts])
    tokens = plan.response_length[every].sum(axis=1, dtype=np.int64)
    return EpochOrder(
        blocks=tuple(blocks),
        pairs=every,
        window_start=np.cumsum([0, *map(len, parts)]),
        slot_start=_slots(tokens, shape),
    )


def shuffled_windows(
    plan: BlockPlan, seed: int, epoch: int, window_blocks: int
) -> list[NDArray[np.int64]]:
    """Return the blocks of each window, in the order of one epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(plan.blocks)
    return [order[at : at + window_blocks] for at in range(0, plan.blocks, window_blocks)]


def _wanted_of(plan: BlockPlan, block: int, wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    pairs = plan.pairs_of(block)
    return pairs.start + np.flatnonzero(wanted[pairs.start : pairs.stop])


def _slots(tokens: NDArray[np.int64], shape: StepLayout) -> NDArray[np.int64]:
    """Cut pairs of so many tokens each, in order, into steps of slots."""
    count, slots = len(tokens), shape.slots
    if shape.batch_tokens is not None:
        starts = _fill(tokens, shape.batch_tokens)
        steps = -(-len(starts) // slots)
        # A slot ends where the next begins; those left over at the end of the epoch are empty.
        bounds = np.full(steps * slots + 1, count, np.int64)
        bounds[: len(starts)] = starts
        by_step: NDArray[np.int64] = bounds[
            np.arange(steps)[:, None] * slots + np.arange(slots + 1)
        ]
        return by_step
    step = shape.batch_size * slots
    whole = np.arange(count // step)[:, None] * step + np.arange(slots + 1) * shape.batch_size
    if left := count % step:
        # The pairs of the short step at the end are spread evenly.
        last = count - left + np.linspace(0, left, slots + 1).round().astype(np.int64)
        whole = np.concatenate([whole, last[None]])
    return whole


def _fill(tokens: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return where each group of at most so many tokens begins, at least one pair in each."""
    ends = np.cumsum(tokens)
    starts = []
    at = 0
    while at < len(tokens):
        starts.append(at)
        room = (ends[at - 1] if at else 0) + most
        at = max(at + 1, int(np.searchsorted(ends, room, side="right")))
    return np.array(starts, dtype=np.int64)
