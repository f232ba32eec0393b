"""Streaming cached pairs in the order of an epoch, with memory bounded by two windows of blocks.

Whole blocks are read, by threads, a window ahead of the one that batches are made of. Reading,
decompression and copying release the GIL (checksums do not), so threads keep up with disks without
the costs of worker processes: copies between processes, shared memory, a fork.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mav.cache_schema.reader import Block, BlockMemory, CacheReader
from mav.pipeline.loader.batch import Batch, BatchMemory, collate, empty_like
from mav.pipeline.loader.sampler import EpochOrder

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
    No pair is dropped or repeated. A `DataLoader` with `batch_size=None` may read it with any
    number of workers, which does not change the order; `prefetch` is faster.

    Attributes:
        reader: The cache.
        order: The order of the epoch.
        workers: Threads that read.
    """

    def __init__(
        self,
        reader: CacheReader,
        order: EpochOrder,
        *,
        first_step: int = 0,
        workers: int = 0,
        memory: StreamMemory | None = None,
    ) -> None:
        """Describe the stream; no block is read until it is iterated.

        Args:
            reader: The cache.
            order: The order of the epoch. Up to two of its windows of blocks are in memory.
            first_step: Steps to leave out at its beginning.
            workers: Threads that read ahead; with 0 nothing is read before it is needed.
            memory: Memory of an earlier stream that has ended.
        """
        super().__init__()
        self.reader = reader
        self.order = order
        self.workers = workers
        self._first_step = first_step
        self._memory = memory

    def __iter__(self) -> Iterator[Batch]:
        # Workers of a DataLoader take turns, batch by batch.
        info = get_worker_info()
        turn, turns = (0, 1) if info is None else (info.id, info.num_workers)
        layout = self.order.layout
        places = [
            (step, layout.micro_batch_index(number))
            for step in range(self._first_step, self.order.steps)
            for number in range(layout.grad_accum)
        ]
        memory = self._memory or StreamMemory()
        held = _HeldBlocks(self.reader, self.order, self.workers, memory.blocks)
        with contextlib.closing(held):
            for step, index in places[turn::turns]:
                yield self._micro_batch(held, step, index, memory.batches)

    def _micro_batch(
        self, held: "_HeldBlocks", step: int, index: int, memory: BatchMemory
    ) -> Batch:
        bounds, manifest = self.order.micro_batch_start[step], self.reader.manifest
        step_pairs = int(bounds[-1] - bounds[0])
        first, end = int(bounds[index]), int(bounds[index + 1])
        if first < end:
            return collate(held.pairs(range(first, end)), manifest, step_pairs, memory)
        # A process that has no pair left in a step still takes part in it. The pair that gives the
        # shapes is as late in the step as possible, since blocks before it may have been released.
        sample = max(int(bounds[0]), first - 1)
        return empty_like(collate(held.pairs(range(sample, sample + 1)), manifest, step_pairs))


class _HeldBlocks:
    """The blocks in memory: those of the window that batches are made of, and of the next one.

    A block's memory is reused only when its window is past and no thread is filling it.
    """

    def __init__(
        self, reader: CacheReader, order: EpochOrder, workers: int, free: list[BlockMemory]
    ) -> None:
        self._reader = reader
        self._order = order
        self._pool = ThreadPoolExecutor(workers, "read") if workers else None
        self._held: dict[tuple[int, int], tuple[Future[Block], BlockMemory]] = {}
        self._free = free

    def pairs(self, places: range) -> list[tuple[Block, int]]:
        """Return the pairs at these places of the order, each as its block and its index in it.

        The blocks are valid until the next call. Places never go back.
        """
        order = self._order
        self._move_to(int(order.window_of[places.start]))
        pairs = order.pairs[places.start : places.stop]
        blocks = np.searchsorted(self._reader.plan.block_start, pairs, side="right") - 1
        located = []
        for place, pair, number in zip(places, pairs.tolist(), blocks.tolist(), strict=True):
            block = self._request(int(order.window_of[place]), number).result()
            located.append((block, pair - block.pairs.start))
        return located

    def close(self) -> None:
        """Stop reading, and release the memory."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._free += [memory for _, memory in self._held.values()]

    def _move_to(self, window: int) -> None:
        for key in [key for key in self._held if key[0] < window]:
            future, memory = self._held.pop(key)
            # Memory that a thread is still filling is left to that thread.
            if future.cancel() or future.done():
                self._free.append(memory)
        if self._pool is not None:
            for ahead in range(window, min(window + 2, len(self._order.blocks))):
                for number in self._order.blocks[ahead].tolist():
                    self._request(ahead, number)

    def _request(self, window: int, number: int) -> Future[Block]:
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
    abandoned = threading.Event()
    # The current accelerator is a setting of each thread, at first the first device.
    on_card = pinned and torch.accelerator.is_available()
    current = torch.accelerator.current_device_index() if on_card else None

    def put(item: Batch | BaseException | None) -> None:
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_LOOK_SECONDS)
                return

    def make() -> None:
        try:
            if current is not None:
                torch.accelerator.set_device_index(current)
            for batch in stream:
                put(batch.pin_memory() if pinned else batch)
                if abandoned.is_set():
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
        abandoned.set()
        maker.join()
