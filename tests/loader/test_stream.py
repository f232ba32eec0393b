"""Streams of batches: what they hold, and where they may begin."""

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mav.pipeline.loader.batch import Batch
from mav.pipeline.loader.dataset import prefetch
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.loader.split import PairSubset, in_subset
from tests.support.caches.streams import (
    EVERY_MODE,
    EVERY_WORKERS,
    MODES,
    RAGGED,
    READING,
    SEEDS,
    SHAPES,
    WINDOWS,
    assert_same_batches,
    bits,
    expected,
    opened,
    read_whole,
    shared_by,
    stream,
    threads,
)
from tests.support.running.limits import PROCESS


@cache
def pair_of_state(root: Path) -> dict[bytes, int]:
    """First state of the chosen answer -> pair; prompts all differ, so the states do."""
    reader, arrays = read_whole(root)
    first = reader.plan.response_start[:, 0].tolist()
    found = {bits(arrays["hidden_states"][row]): pair for pair, row in enumerate(first)}
    assert len(found) == reader.plan.pairs
    return found


def pairs_in(root: Path, batch: Batch) -> list[int]:
    known = pair_of_state(root)
    return [known[bits(batch.states[token])] for token in batch.offsets[:-1:2]]


@READING
@given(
    shape=SHAPES,
    seed=SEEDS,
    window=WINDOWS,
    fraction=st.sampled_from([0.0, 0.3, 0.8]),
    training=st.booleans(),
    workers=st.sampled_from([0, 1, 4]),
)
def test_every_wanted_pair_comes_once_over_all_ranks(
    tiny_cache: Path,
    shape: StepLayout,
    seed: int,
    window: int,
    fraction: float,
    training: bool,
    workers: int,
) -> None:
    subset = PairSubset(split="training" if training else "held-out", fraction=fraction)
    wanted = np.flatnonzero(in_subset(opened(tiny_cache).prompt_id, subset)).tolist()
    seen = []
    steps: dict[int, list[Batch]] = {}
    for rank in range(shape.world_size):
        batches = stream(
            tiny_cache,
            shape,
            seed=seed,
            rank=rank,
            window_blocks=window,
            subset=subset,
            workers=workers,
        )
        for number, batch in enumerate(batches):
            seen += pairs_in(tiny_cache, batch)
            steps.setdefault(number // shape.grad_accum, []).append(batch)
    assert sorted(seen) == wanted
    assert sorted(steps) == list(range(len(steps)))
    for step in steps.values():
        assert len(step) == shape.micro_batches
        assert {batch.step_pairs for batch in step} == {sum(batch.pairs for batch in step)}


def test_a_process_without_pairs_in_the_last_step_gets_empty_batches(tiny_cache: Path) -> None:
    shape = StepLayout(batch_size=1, grad_accum=3, world_size=13)
    last = [list(stream(tiny_cache, shape, rank=rank))[-3:] for rank in range(13)]
    counts = [[batch.pairs for batch in batches] for batches in last]
    assert sum(map(sum, counts)) == 1
    for batches in last:
        for batch in batches:
            assert (batch.step_pairs, len(batch.labels)) == (1, int(batch.offsets[-1]))
            assert batch.states.shape[1:] == (3, 32)


@READING
@given(shape=SHAPES, seed=SEEDS, window=WINDOWS, epoch=st.integers(0, 3))
def test_contents_are_the_rows_of_the_cache(
    tiny_cache: Path, shape: StepLayout, seed: int, window: int, epoch: int
) -> None:
    whole = expected(tiny_cache, shape, seed=seed, window_blocks=window, epoch=epoch)
    for rank in range(shape.world_size):
        batches = stream(tiny_cache, shape, seed=seed, rank=rank, window_blocks=window, epoch=epoch)
        assert_same_batches(list(batches), whole.batches(shape, rank))


@EVERY_WORKERS
@EVERY_MODE
def test_any_step_can_be_the_first_with_any_number_of_processes(
    tiny_cache: Path, shape: StepLayout, workers: int
) -> None:
    """With four processes every batch of a process is a step."""
    for epoch in (0, 1):
        whole = expected(tiny_cache, shape, epoch=epoch, subset=RAGGED)
        assert whole.steps > 5
        if shape.batch_tokens is None:
            assert sum(batch.pairs for batch in whole.micro_batches[-1]) == 1
        for processes in (1, 2, 4):
            shared = shared_by(shape, processes)
            for first in range(whole.steps + 1):
                # All ranks from everywhere would take long, and they do not meet.
                ranks = range(processes) if first in (0, 3) else [first % processes]
                for rank in ranks:
                    batches = stream(
                        tiny_cache,
                        shared,
                        epoch=epoch,
                        first_step=first,
                        rank=rank,
                        subset=RAGGED,
                        workers=workers,
                    )
                    assert_same_batches(list(batches), whole.batches(shared, rank, first))


@EVERY_WORKERS
@pytest.mark.parametrize("tokens", [None, 150])
def test_any_batch_can_be_the_first(tiny_cache: Path, workers: int, tokens: int | None) -> None:
    shape = StepLayout(batch_size=3, grad_accum=1, batch_tokens=tokens)
    whole = expected(tiny_cache, shape, window_blocks=2)
    for first in range(whole.steps + 1):
        batches = stream(tiny_cache, shape, first_step=first, window_blocks=2, workers=workers)
        assert_same_batches(list(batches), whole.batches(shape, first_step=first))


@READING
@given(data=st.data(), shape=st.sampled_from(sorted(MODES)), seed=SEEDS, window=WINDOWS)
def test_a_run_that_is_stopped_again_and_again_sees_the_same_batches(
    tiny_cache: Path, data: st.DataObject, shape: str, seed: int, window: int
) -> None:
    """Two epochs, each time with other processes and threads, stopped in the middle of a step."""
    for epoch in (0, 1):
        whole = expected(
            tiny_cache, MODES[shape], seed=seed, epoch=epoch, window_blocks=window, subset=RAGGED
        )
        step = 0
        while step < whole.steps:
            shared = shared_by(MODES[shape], data.draw(st.sampled_from([1, 2, 4])))
            done = data.draw(st.integers(1, whole.steps - step))
            begun = data.draw(st.integers(0, shared.grad_accum - 1))
            workers = data.draw(st.sampled_from([0, 1, 4]))
            for rank in range(shared.world_size):
                batches = prefetch(
                    stream(
                        tiny_cache,
                        shared,
                        seed=seed,
                        epoch=epoch,
                        first_step=step,
                        rank=rank,
                        window_blocks=window,
                        subset=RAGGED,
                        workers=workers,
                    )
                )
                count = done * shared.grad_accum + begun
                found = list(islice(batches, count))
                cast("Any", batches).close()
                assert_same_batches(found, whole.batches(shared, rank, step)[:count])
            step += done


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("processes", "workers"), [(0, 0), (0, 4), (1, 0), (2, 1), (4, 0)])
def test_a_data_loader_changes_nothing(tiny_cache: Path, processes: int, workers: int) -> None:
    shape = StepLayout(batch_size=2, grad_accum=3, world_size=2, batch_tokens=120)
    batches = stream(tiny_cache, shape, rank=1, first_step=1, workers=workers)
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=processes,
        multiprocessing_context="fork" if processes else None,
        timeout=PROCESS if processes else 0,  # an error, where a worker hangs
    )
    wanted = expected(tiny_cache, shape).batches(shape, 1, 1)
    assert not threads()  # what they hold, a forked process would wait for
    assert_same_batches(list(loader), wanted)


@EVERY_WORKERS
@EVERY_MODE
def test_reading_ahead_changes_nothing(tiny_cache: Path, shape: StepLayout, workers: int) -> None:
    shared = shared_by(shape, 2)
    batches = stream(tiny_cache, shared, rank=1, workers=workers, subset=RAGGED)
    wanted = list(batches)
    assert_same_batches(wanted, expected(tiny_cache, shared, subset=RAGGED).batches(shared, 1))
    for _ in range(2):  # a stream may be read again
        assert_same_batches(list(prefetch(batches)), wanted)
    assert not threads()


def test_batches_are_pinned_where_asked_for(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: replace(batch, step_pairs=-1))
    for pinned in (False, True):
        found = list(prefetch(stream(tiny_cache, MODES["pairs"]), pinned=pinned))
        assert {batch.step_pairs == -1 for batch in found} == {pinned}
