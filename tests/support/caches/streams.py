"""Streams of batches from caches, and the batches that they should give."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from mav.cache_schema import Block, CacheReader
from mav.cache_schema.reader import BlockMemory
from mav.pipeline.loader.batch import Batch
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory
from mav.pipeline.loader.sampler import EpochOrder, StepLayout, order_epoch
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.ops.tensor_storage import from_stored
from tests.support.profiles import examples
from tests.support.running.limits import EVENT

ALL = PairSubset(split="all")
# Reading is slow on a busy machine, and shrinking would read for minutes.
READING = settings(
    max_examples=examples(0.3),
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
# Both have four micro-batches, which one, two or four processes share.
MODES = {
    "pairs": StepLayout(batch_size=1, grad_accum=4),
    "tokens": StepLayout(batch_size=1, grad_accum=4, batch_tokens=90),
}
RAGGED = PairSubset(split="training", fraction=0.12)
EVERY_MODE = pytest.mark.parametrize("shape", MODES.values(), ids=MODES)


@cache
def opened(root: str | Path) -> CacheReader:
    """A reader of a cache that no test changes any more."""
    return CacheReader(root)


def stream(
    root: str | Path,
    layout: StepLayout,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_step: int = 0,
    rank: int = 0,
    window_blocks: int = 4,
    subset: PairSubset = ALL,
    workers: int = 0,
    memory: StreamMemory | None = None,
) -> CachedPreferenceDataset:
    """The stream of one process of an epoch; arguments are those of the order and the dataset."""
    reader = opened(root)
    order = order_epoch(
        reader.plan,
        in_subset(reader.prompt_id, subset),
        replace(layout, rank=rank),
        seed=seed,
        epoch=epoch,
        window_blocks=window_blocks,
    )
    return CachedPreferenceDataset(
        reader, order, first_step=first_step, workers=workers, memory=memory
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """An epoch of a cache."""

    order: EpochOrder
    micro_batches: list[list[Batch]]

    @property
    def steps(self) -> int:
        return self.order.steps

    def batches(self, shape: StepLayout, rank: int = 0, first_step: int = 0) -> list[Batch]:
        """The batches of one process, whatever the number of processes."""
        ranked = replace(shape, rank=rank)
        return [
            step[ranked.micro_batch_index(number)]
            for step in self.micro_batches[first_step:]
            for number in range(shape.grad_accum)
        ]


@cache
def read_whole(root: Path) -> tuple[CacheReader, dict[str, Tensor]]:
    """A cache, and its arrays by path, [rows, ...], with the rows that no pair uses left zero."""
    reader = opened(root)
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
    """The batches of an epoch, from whole blocks and the order alone."""
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

    micro_batches = [
        [
            batch(order.pairs[start:end].tolist(), int(bounds[-1] - bounds[0]))
            for start, end in pairwise(bounds.tolist())
        ]
        for bounds in order.micro_batch_start
    ]
    return Expected(order=order, micro_batches=micro_batches)


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor."""
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


def shared_by(shape: StepLayout, processes: int) -> StepLayout:
    """The same steps, shared by so many processes."""
    return replace(shape, grad_accum=shape.micro_batches // processes, world_size=processes)


def threads() -> list[str]:
    """Names of the threads that read or make batches."""
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


def note_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the blocks that are read from now on."""
    read: list[int] = []
    original = CacheReader.read_block

    def noting(reader: CacheReader, block: int, memory: BlockMemory | None = None) -> Block:
        read.append(block)
        return original(reader, block, memory)

    monkeypatch.setattr(CacheReader, "read_block", noting)
    return read
