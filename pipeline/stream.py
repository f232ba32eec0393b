"""Streaming cached pairs in a shuffled order, with memory bounded by a window of blocks.

Pairs already lie in a fixed random order on disk. Each epoch visits the blocks in a new random
order and mixes pairs inside a window of consecutive blocks. The order is a pure function of
(seed, epoch), and any step of it can be the first: windows before it are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from cache_schema.errors import CacheError, MAVError
from cache_schema.objects import is_remote
from cache_schema.plan import BlockPlan
from cache_schema.reader import Block, CacheReader
from pipeline.batch import Batch, collate, empty_like
from pipeline.held_out import PairSubset, in_subset

WINDOW_BLOCKS: Final = 8
_BATCHES_AHEAD: Final = 4


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """How the pairs of an optimizer step are shared out.

    Attributes:
        batch_size: Pairs in a micro-batch.
        grad_accum: Micro-batches of each process in a step.
        world_size: Processes.
        rank: This process.
    """

    batch_size: int
    grad_accum: int
    world_size: int = 1
    rank: int = 0

    @property
    def pairs(self) -> int:
        """Pairs of a full step over all processes."""
        return self.batch_size * self.grad_accum * self.world_size


class PreferenceStream(IterableDataset[Batch]):
    """The micro-batches of one process for one epoch.

    Every step gives exactly `grad_accum` of them. The last step of an epoch may be short; its
    pairs are spread over all micro-batches, of which some may then be empty. No pair is dropped
    and none is seen twice.

    Attributes:
        location: Folder or URL of the cache.
    """

    def __init__(
        self,
        location: str | Path,
        subset: PairSubset,
        shape: StepShape,
        *,
        seed: int,
        epoch: int,
        first_step: int = 0,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        """Describe the stream; nothing is opened until it is iterated.

        Args:
            location: Folder or URL of the cache.
            subset: Which of its pairs.
            shape: How steps are shared out.
            seed: Seed of the order.
            epoch: Epoch, counted from 0.
            first_step: Steps of this epoch to leave out at its beginning.
            window_blocks: Blocks in memory at once.
        """
        super().__init__()
        self.location = location
        self._subset = subset
        self._shape = shape
        self._seed = seed
        self._epoch = epoch
        self._first_step = first_step
        self._window_blocks = window_blocks

    def __iter__(self) -> Iterator[Batch]:
        reader = CacheReader(self.location)
        wanted = in_subset(reader.prompt_id, self._subset)
        step_pairs = self._shape.pairs
        skip = self._first_step * step_pairs
        pending: list[tuple[Block, int]] = []
        for number, window in enumerate(
            shuffled_windows(reader.plan, self._seed, self._epoch, self._window_blocks)
        ):
            pairs = [
                (int(block), pair)
                for block in window
                for pair in reader.plan.pairs_of(int(block))
                if wanted[pair]
            ]
            if skip >= len(pairs):
                skip -= len(pairs)
                continue
            order = np.random.default_rng([self._seed, self._epoch, number]).permutation(len(pairs))
            blocks = {int(block): reader.read_block(int(block)) for block in window}
            for place in order[skip:]:
                block = blocks[pairs[place][0]]
                pending.append((block, pairs[place][1] - block.pairs.start))
                if len(pending) == step_pairs:
                    yield from self._micro_batches(reader, pending)
                    pending = []
            skip = 0
            # What the next step begins with is copied, so that this window can go.
            pending = [(_only(block, index), 0) for block, index in pending]
            del blocks, block
        if pending:
            yield from self._micro_batches(reader, pending)

    def _micro_batches(
        self, reader: CacheReader, pairs: list[tuple[Block, int]]
    ) -> Iterator[Batch]:
        shape = self._shape
        slots = shape.grad_accum * shape.world_size
        cuts = np.linspace(0, len(pairs), slots + 1).round().astype(int)
        for micro in range(shape.grad_accum):
            slot = micro * shape.world_size + shape.rank
            mine = pairs[cuts[slot] : cuts[slot + 1]]
            if mine:
                yield collate(mine, reader.manifest, len(pairs))
            else:
                yield empty_like(collate(pairs[:1], reader.manifest, len(pairs)))


def shuffled_windows(
    plan: BlockPlan, seed: int, epoch: int, window_blocks: int
) -> list[NDArray[np.int64]]:
    """Return the blocks of each window, in the order of one epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(plan.blocks)
    return [order[at : at + window_blocks] for at in range(0, plan.blocks, window_blocks)]


def _only(block: Block, index: int) -> Block:
    """Return a block of one pair, its rows copied."""
    offsets = block.offsets[2 * index : 2 * index + 3]
    pair = block.pairs.start + index
    return Block(
        number=block.number,
        pairs=range(pair, pair + 1),
        offsets=offsets - offsets[0],
        rows={path: rows[offsets[0] : offsets[2]].copy() for path, rows in block.rows.items()},
    )


class _Told(IterableDataset[Batch | str]):
    """A stream that gives an error users can mend as its message.

    A loader raises what its worker raised with the worker's traceback as the message.
    """

    def __init__(self, stream: PreferenceStream) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Batch | str]:
        try:
            yield from self._stream
        except MAVError as error:
            yield str(error)


def read_ahead(stream: PreferenceStream, workers: int = 1) -> Iterator[Batch]:
    """Yield a stream's batches, prepared in another process while this one computes.

    Args:
        stream: The stream.
        workers: 1, or 0 to read in this process.

    Raises:
        CacheError: The cache is damaged.
    """
    assert workers in (0, 1), "one worker keeps the order; it reads whole blocks"
    # The threads that talk to object storage do not live on in a forked process.
    afresh = workers and is_remote(stream.location)
    loader: DataLoader[Batch | str] = DataLoader(
        _Told(stream),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_BATCHES_AHEAD if workers else None,
        multiprocessing_context="spawn" if afresh else None,
    )
    for item in loader:
        if isinstance(item, str):
            raise CacheError(item)
        yield item
