"""What a run trains on and is evaluated on, as streams of batches."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mav.cache_schema.errors import DataError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.compatibility import check_features
from mav.pipeline.loader.batch import Batch
from mav.pipeline.loader.dataset import CachedPreferenceDataset, StreamMemory, prefetch
from mav.pipeline.loader.sampler import EpochOrder, EpochOrders, StepLayout, order_epoch
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.schedule import Schedule

_READ_AT_ONCE: Final = 16


class TrainingSet:
    """The pairs of a cache that a run trains on.

    Attributes:
        layout: How each step is shared out.
        pairs: Number of pairs.
        tokens: Number of response tokens.
        schedule: The steps of the run.
    """

    def __init__(self, options: TrainOptions, reader: CacheReader, layout: StepLayout) -> None:
        """Count pairs, tokens and steps.

        Args:
            options: What to train.
            reader: The cache.
            layout: How each step is shared out.

        Raises:
            DataError: There is no pair to train on.
        """
        subset = PairSubset(split="training", fraction=options.held_out_fraction)
        wanted = in_subset(reader.prompt_id, subset, reader.evaluation_only)
        self._wanted = wanted
        self.layout = layout
        self.pairs = int(wanted.sum())
        self.tokens = int(reader.plan.response_length[wanted].sum())
        if not self.pairs:
            raise _nothing_left(options, reader)
        self._reader = reader
        self._epochs = options.num_epochs
        self._workers = options.workers
        self._orders = EpochOrders(reader.plan, wanted, layout, seed=options.seed)
        self._memory = StreamMemory()
        self.schedule = Schedule(
            epoch_steps=tuple(self._orders.steps(epoch) for epoch in range(options.num_epochs)),
            peak=options.learning_rate,
            warmup=options.warmup_steps,
        )

    def summary(self) -> str:
        """Return how much there is to train on, in one line."""
        layout = self.layout
        step = (
            f"{layout.batch_size * layout.micro_batches} pairs"
            if layout.batch_tokens is None
            else f"{layout.batch_tokens * layout.micro_batches:,} tokens at most"
        )
        return (
            f"{self.pairs:,} pairs with {self.tokens:,} response tokens; "
            f"{self.schedule.total:,} steps of {step}"
        )

    def first_pairs(self, most: int) -> Iterator[Batch]:
        """Yield the first so many pairs, on the CPU, as one process reads them.

        Args:
            most: How many at most.
        """
        wanted = np.zeros_like(self._wanted)
        wanted[np.flatnonzero(self._wanted)[:most]] = True
        layout = StepLayout(batch_size=_READ_AT_ONCE, grad_accum=1)
        order = order_epoch(self._reader.plan, wanted, layout, seed=0, epoch=0)
        return prefetch(CachedPreferenceDataset(self._reader, order))

    def steps_from(self, first_step: int, device: torch.device) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of each step that is left.

        Args:
            first_step: Steps already taken.
            device: Where the batches go.
        """
        first_epoch, skipped = self.schedule.position(first_step)
        for epoch in range(first_epoch, self._epochs):
            stream = CachedPreferenceDataset(
                self._reader,
                self._orders.order(epoch),
                first_step=skipped,
                workers=self._workers,
                memory=self._memory,
            )
            skipped = 0
            step: list[Batch] = []
            for batch in prefetch(stream, pinned=device.type == "cuda"):
                step.append(batch.to(device))
                if len(step) == self.layout.grad_accum:
                    yield step
                    step = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The pairs that a run is evaluated on: part of the training cache, or all of another.

    Attributes:
        reader: The cache.
        wanted: bool [pairs], which of its pairs.
        layout: How batches are shared out.
    """

    reader: CacheReader
    wanted: NDArray[np.bool_]
    layout: StepLayout

    @cached_property
    def _order(self) -> EpochOrder:
        return order_epoch(self.reader.plan, self.wanted, self.layout, seed=0, epoch=0)

    def batches(self) -> Iterator[Batch]:
        """Yield this process's batches, always in the same order."""
        return prefetch(CachedPreferenceDataset(self.reader, self._order))


def evaluation_set(
    options: TrainOptions, reader: CacheReader, layout: StepLayout
) -> EvaluationSet | None:
    """Return what a run is evaluated on, or None where nothing is held out.

    Args:
        options: What to train.
        reader: The training cache.
        layout: How each step of training is shared out.

    Raises:
        MismatchError: The other cache's states or logits are not those of the training cache.
    """
    layout = dataclasses.replace(layout, grad_accum=1)
    if options.eval_cache is not None:
        other = CacheReader(options.eval_cache)
        check_features(reader.manifest, other.manifest, str(options.cache), str(options.eval_cache))
        every = np.ones(other.plan.pairs, np.bool_)
        return EvaluationSet(reader=other, wanted=every, layout=layout)
    subset = PairSubset(split="held-out", fraction=options.eval_fraction)
    wanted = in_subset(reader.prompt_id, subset, reader.evaluation_only)
    return EvaluationSet(reader=reader, wanted=wanted, layout=layout) if wanted.any() else None


def _nothing_left(options: TrainOptions, reader: CacheReader) -> DataError:
    if reader.evaluation_only.all():
        return DataError(
            f"{options.cache}: all of its {reader.plan.pairs} pairs are of data sets for "
            f"evaluation alone; name it as `eval_cache`, and as `cache` one that has pairs to "
            f"train on"
        )
    return DataError(
        f"{options.cache}: `eval_fraction` {options.eval_fraction} holds out all of its "
        f"{reader.plan.pairs} pairs; use a smaller one"
    )
