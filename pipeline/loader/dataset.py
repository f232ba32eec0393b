"""Streaming cached pairs in the order of an epoch, with memory bounded by two windows of blocks.

Whole blocks are read, by threads, a window ahead of the one that batches are made of. Reading,
decompression and copying let other Python threads run (checksums do not), so threads keep up with
disks and need none of what worker processes cost: copies between processes, shared memory, a fork.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mav.cache_schema.reader import Block, BlockMemory, CacheReader
from mav.pipeline.loader.batch import Batch, BatchMemory, collate, empty_like
from mav.pipeline.loader.sampler import WINDOW_BLOCKS, EpochOrder, StepLayout, order_epoch
from mav.pipeline.loader.split import PairSubset, in_subset

_BATCHES_AHEAD: Final = 4
_LOOK_SECONDS: Final = 0.2


class StreamMemory:
    """Memory that one epoch's stream leaves to the next.

    Attributes:
        blocks: Memory of blocks that is free.
        batches: Memory of batches.
    """

    def __init__(self) -> None:
        self.blocks: list[BlockMemory] = []
        self.batches = BatchMemory()


class CachedPreferenceDataset(IterableDataset[Batch]):
    """The micro-batches of one process for one epoch.

    Every step gives exactly `grad_accum` of them; in the last step of an epoch some may be empty.
    No pair is dropped and none is seen twice. It may be given to a `DataLoader` with
    `batch_size=None` and any number of workers, which changes nothing about the order;
    `prefetch` is quicker.

    Attributes:
        location: Folder or URL of the cache.
        workers: Threads that read.
    """

    def __init__(
        self,
        location: str | Path,
        subset: PairSubset,
        shape: StepLayout,
        *,
        seed: int,
        epoch: int,
        first_step: int = 0,
        window_blocks: int = WINDOW_BLOCKS,
        workers: int = 0,
        memory: StreamMemory | None = None,
    ) -> None:
        """Describe the stream; nothing is opened until it is iterated.

        Args:
            location: Folder or URL of the cache.
            subset: Which of its pairs.
            shape: How steps are shared out.
            seed: Seed of the order.
            epoch: Epoch, counted from 0.
            first_step: Steps of this epoch to leave out at its beginning.
            window_blocks: Blocks that are mixed; up to twice as many are in memory.
            workers: Threads that read ahead; with 0 nothing is read before it is needed.
            memory: Memory of an earlier stream that is done.
        """
        super().__init__()
        self.location = location
        self.workers = workers
        self._subset = subset
        self._shape = shape
        self._seed = seed
        self._epoch = epoch
        self._first_step = first_step
        self._window_blocks = window_blocks
        self._memory = memory

    def __iter__(self) -> Iterator[Batch]:
        reader = CacheReader(self.location)
        order = order_epoch(
            reader.plan,
            in_subset(reader.prompt_id, self._subset, reader.set_apart),
            self._shape,
            seed=self._seed,
            epoch=self._epoch,
            window_blocks=self._window_blocks,
        )
        # Workers of a DataLoader take turns, batch by batch.
        info = get_worker_info()
        turn, turns = (0, 1) if info is None else (info.id, info.num_workers)
        slots = [
            (step, self._shape.slot(micro))
            for step in range(self._first_step, order.steps)
            for micro in range(self._shape.grad_accum)
        ]
        memory = self._memory or StreamMemory()
        with contextlib.closing(_HeldBlocks(reader, order, self.workers, memory.blocks)) as held:
            for step, slot in slots[turn::turns]:
                yield _micro_batch(held, reader, order, step, slot, memory.batches)


def _micro_batch(
    held: "_HeldBlocks",
    reader: CacheReader,
    order: EpochOrder,
    step: int,
    slot: int,
    memory: BatchMemory,
) -> Batch:
    bounds = order.slot_start[step]
    step_pairs = int(bounds[-1] - bounds[0])
    first, end = int(bounds[slot]), int(bounds[slot + 1])
    if first < end:
        return collate(held.pairs(range(first, end)), reader.manifest, step_pairs, memory)
    # A process that has no pair left in a step still takes part in it. What is taken for the
    # shapes lies as late in the step as can be, for places never go back.
    some_place = max(int(bounds[0]), first - 1)
    some = held.pairs(range(some_place, some_place + 1))
    return empty_like(collate(some, reader.manifest, step_pairs))


class _HeldBlocks:
    """The blocks in memory: those of the window that batches are made of, and of the next one."""

    def __init__(
        self, reader: CacheReader, order: EpochOrder, workers: int, free: list[BlockMemory]
    ) -> None:
        self._reader = reader
        self._order = order
        self._pool = ThreadPoolExecutor(workers, "read") if workers else None
        self._held: dict[tuple[int, int], tuple[Future[Block], BlockMemory]] = {}
        self._free = free

    def pairs(self, places: range) -> list[tuple[Block, int]]:
        """Return the pairs at these places of the order, each as its block and its index there.

        What is returned is good until the next call. Places never go back.
        """
        order = self._order
        self._move_to(int(order.window_of[places.start]))
        pairs = order.pairs[places.start : places.stop]
        blocks = np.searchsorted(self._reader.plan.block_start, pairs, side="right") - 1
        found = []
        for place, pair, number in zip(places, pairs.tolist(), blocks.tolist(), strict=True):
            block = self._ask_for(int(order.window_of[place]), number).result()
            found.append((block, pair - block.pairs.start))
        return found

    def close(self) -> None:
        """Stop reading, and leave the memory to others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._free += [memory for _, memory in self._held.values()]

    def _move_to(self, window: int) -> None:
        for key in [key for key in self._held if key[0] < window]:
            future, memory = self._held.pop(key)
            # Where a thread is still filling it, it is nobody's but that thread's.
            if future.cancel() or future.done():
                self._free.append(memory)
        if self._pool is not None:
            for ahead in range(window, min(window + 2, len(self._order.blocks))):
                for number in self._order.blocks[ahead].tolist():
                    self._ask_for(ahead, number)

    def _ask_for(self, window: int, number: int) -> Future[Block]:
        if (window, number) not in self._held:
            memory = self._free.pop() if self._free else BlockMemory()
            if self._pool is not None:
                future = self._pool.submit(self._reader.read_block, number, memory)
            else:
                future = Future()
                future.set_result(self._reader.read_block(number, memory))
            self._held[window, number] = future, memory
        return self._held[window, number][0]


def prefetch(stream: CachedPreferenceDataset, *, pinned: bool = False) -> Iterator[Batch]:
    """Yield a stream's batches, made in another thread while this one computes.

    Args:
        stream: The stream.
        pinned: Whether to put batches in memory that accelerators copy from at full speed.

    Raises:
        CacheError: The cache is damaged.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
    left = threading.Event()
    # Each thread has a current accelerator of its own, the first one at the beginning.
    on_card = pinned and torch.accelerator.is_available()
    current = torch.accelerator.current_device_index() if on_card else None

    def put(item: Batch | BaseException | None) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_LOOK_SECONDS)
                return

    def make() -> None:
        try:
            if current is not None:
                torch.accelerator.set_device_index(current)
            for batch in stream:
                put(batch.pin_memory() if pinned else batch)
                if left.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    maker = threading.Thread(target=make, name="batches", daemon=True)
    maker.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        left.set()
        maker.join()
