"""Batches: how they move, and sums over their responses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mav.pipeline.loader.batch import Batch, collate, empty_like
from mav.pipeline.loader.sampler import StepLayout
from tests.support.caches.streams import opened, stream


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_batch_moves_whole(tiny_cache: Path, device: str) -> None:
    batch = next(iter(stream(tiny_cache, StepLayout(batch_size=2, grad_accum=1))))
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
    batch = next(iter(stream(tiny_cache, StepLayout(batch_size=2, grad_accum=1))))
    values = torch.zeros(len(batch.labels), requires_grad=True)
    chosen, rejected = batch.response_sums(values)
    (gradient,) = torch.autograd.grad((chosen - 2 * rejected).sum(), values)
    lengths = batch.offsets.diff()
    assert torch.equal(gradient, torch.tensor([1.0, -2, 1, -2]).repeat_interleave(lengths))


def test_an_empty_batch_has_the_shapes_of_a_full_one(tiny_cache: Path) -> None:
    reader = opened(tiny_cache)
    full = collate([(reader.read_block(0), 0)], reader.manifest, 5)
    empty = empty_like(full)
    assert (empty.pairs, empty.step_pairs, empty.offsets.tolist()) == (0, 5, [0])
    for path, tensor in empty.rows.items():
        assert tensor.shape == (0, *full.rows[path].shape[1:])
        assert tensor.dtype == full.rows[path].dtype
