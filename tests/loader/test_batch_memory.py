"""Memory of batches is handed on once nobody has them, and never before."""

from pathlib import Path

import numpy as np
import torch

from mav.pipeline.loader.batch import Batch, BatchMemory
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory, prefetch
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.ops.tensor_storage import from_stored
from tests.support.caches.streams import stream

STATES = np.dtype(np.uint16)


def tensor_of(memory: BatchMemory, rows: int = 100) -> torch.Tensor:
    return from_stored(memory.array((rows, 3, 4), STATES), "bfloat16")


def test_memory_that_nobody_has_is_used_again() -> None:
    memory = BatchMemory()
    first = tensor_of(memory)
    place = first.data_ptr()
    assert tensor_of(memory).data_ptr() != place
    del first
    assert tensor_of(memory, 90).data_ptr() == place


def test_memory_of_which_a_view_is_left_is_not() -> None:
    memory = BatchMemory()
    first = tensor_of(memory)
    view, place = first[5:7].unbind(1)[0], first.data_ptr()
    del first
    assert tensor_of(memory).data_ptr() != place
    assert view.shape == (2, 4)


def test_memory_that_is_much_too_large_is_not() -> None:
    memory = BatchMemory()
    place = tensor_of(memory, 1000).data_ptr()
    assert tensor_of(memory, 10).data_ptr() != place


def test_no_more_is_kept_than_a_few_batches_need() -> None:
    memory = BatchMemory()
    held = [tensor_of(memory) for _ in range(200)]
    assert len({tensor.data_ptr() for tensor in held}) == 200
    assert len(memory._buffers) <= 65


def epoch(root: Path, number: int, memory: StreamMemory | None) -> CachedPreferenceDataset:
    layout = StepLayout(batch_size=3, grad_accum=1)
    return stream(root, layout, epoch=number, window_blocks=2, workers=2, memory=memory)


def contents(batches: list[Batch]) -> list[dict[str, torch.Tensor]]:
    return [{path: rows.clone() for path, rows in batch.rows.items()} for batch in batches]


def test_epochs_that_share_memory_are_those_that_do_not(tiny_cache: Path) -> None:
    memory = StreamMemory()
    held: list[Batch] = []
    expected: list[dict[str, torch.Tensor]] = []
    for number in range(3):
        held += list(prefetch(epoch(tiny_cache, number, memory)))
        expected += contents(list(epoch(tiny_cache, number, None)))
        # What was given before is still what it was.
        for batch, rows in zip(held, expected, strict=True):
            assert batch.rows.keys() == rows.keys()
            for path in rows:
                assert torch.equal(batch.rows[path], rows[path])
    blocks = len(memory.blocks)
    assert 0 < blocks <= 4
    list(epoch(tiny_cache, 3, memory))
    assert len(memory.blocks) <= 4
