"""Memory that is in use is never handed out, in any order of taking, releasing and reading."""

import threading
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mav.cache_schema.plan import BlockPlan, plan_blocks
from mav.cache_schema.reader import Block, BlockMemory
from mav.pipeline.loader.batch import BatchMemory
from mav.pipeline.loader.dataset import _HeldBlocks
from mav.pipeline.loader.sampler import StepLayout, order_epoch
from mav.pipeline.ops.tensor_storage import from_stored
from tests.support.profiles import examples
from tests.support.running.limits import EVENT


class Batches(RuleBasedStateMachine):
    """Tensors made of arrays of a pool, each full of its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = BatchMemory()
        self.held: dict[int, torch.Tensor] = {}
        self.taken = 0

    @rule(rows=st.integers(1, 40), part=st.sampled_from(["whole", "view", "transposed"]))
    def take(self, rows: int, part: str) -> None:
        self.taken += 1
        tensor = from_stored(self.memory.array((rows, 3, 4), np.dtype(np.int32)), "int32")
        tensor.fill_(self.taken)
        views = {"whole": tensor, "view": tensor[rows // 2 :, 1], "transposed": tensor.mT}
        self.held[self.taken] = views[part]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @invariant()
    def all_hold_what_they_held(self) -> None:
        assert all((tensor == number).all() for number, tensor in self.held.items())


class SlowReader:
    """Reads blocks full of their own number, each only when it is let."""

    def __init__(self, plan: BlockPlan) -> None:
        self.plan = plan
        self.let, self.begun, self.done = (
            [threading.Event() for _ in range(plan.blocks)] for _ in range(3)
        )

    def read_block(self, number: int, memory: BlockMemory) -> Block:
        self.begun[number].set()
        assert self.let[number].wait(EVENT)
        buffer = memory.buffer("x", 64)
        buffer[:] = number
        self.done[number].set()
        pairs = self.plan.pairs_of(number)
        return Block(number=number, pairs=pairs, offsets=np.zeros(1, np.int64), rows={"x": buffer})


class Blocks(RuleBasedStateMachine):
    """The blocks of a stream whose threads finish late, some of them after their window is past."""

    @initialize(seed=st.integers(0, 99), window=st.integers(1, 3))
    def begin(self, seed: int, window: int) -> None:
        plan = plan_blocks(np.full((14, 2), 5, np.int32), 10)
        layout = StepLayout(batch_size=1, grad_accum=1)
        self.order = order_epoch(plan, None, layout, seed=seed, epoch=0, window_blocks=window)
        self.reader = SlowReader(plan)
        reader: Any = self.reader
        self.blocks = _HeldBlocks(reader, self.order, plan.blocks, [])
        self.place = 0
        self.current: list[Block] = []

    @precondition(lambda self: self.place < 14)
    @rule(skip=st.integers(0, 4), count=st.integers(1, 3))
    def go_on(self, skip: int, count: int) -> None:
        """Take the next pairs; those of other processes are skipped."""
        first = min(self.place + skip, 13)
        places = range(first, min(first + count, 14))
        for pair in self.order.pairs[places.start : places.stop]:
            number = int(np.searchsorted(self.reader.plan.block_start, pair, side="right") - 1)
            self.reader.let[number].set()
        self.current = [block for block, _ in self.blocks.pairs(places)]
        for _, number in self.blocks._held:  # there is a thread for each
            assert self.reader.begun[number].wait(EVENT)
        self.place = places.stop

    @rule(number=st.integers(0, 13))
    def let(self, number: int) -> None:
        """Let a block be read, which may be in no window any more, and wait until it has been."""
        self.reader.let[number].set()
        if self.reader.begun[number].is_set():
            assert self.reader.done[number].wait(EVENT)

    @invariant()
    def blocks_hold_what_was_read(self) -> None:
        for block in getattr(self, "current", []):
            assert (block.rows["x"] == block.number).all()

    @invariant()
    def no_memory_has_two_users(self) -> None:
        if hasattr(self, "blocks"):
            held = [id(memory) for _, memory in self.blocks._held.values()]
            free = [id(memory) for memory in self.blocks._free]
            assert len({*held, *free}) == len(held) + len(free)

    def teardown(self) -> None:
        if hasattr(self, "blocks"):
            for event in self.reader.let:
                event.set()
            self.blocks.close()


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=examples(0.8), stateful_step_count=25)
TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=examples(2.4), stateful_step_count=12)
