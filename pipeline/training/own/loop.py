"""A cache in a loop of one's own: a torch `DataLoader`, and a head's scores with a graph."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mav.cache_schema.errors import DataError, UsageError
from mav.cache_schema.reader import CacheReader
from mav.pipeline.head.compatibility import check_kind
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset
from mav.pipeline.loader.sampler import EpochOrders, StepLayout
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.argument_names import tells_of_wrong_arguments
from mav.pipeline.runtime.choices import Split
from mav.pipeline.training.loss import PreferenceModel, Scores


class EpochsOfPairs(IterableDataset[Batch]):
    """The batches of a cache, in another order at every iteration.

    Attributes:
        epoch: Which order the next iteration has.
    """

    def __init__(
        self, reader: CacheReader, wanted: NDArray[np.bool_], layout: StepLayout, seed: int
    ) -> None:
        """Describe the stream.

        Args:
            reader: The cache.
            wanted: bool [pairs], which of its pairs.
            layout: How they are shared out.
            seed: Of the orders.
        """
        super().__init__()
        self.epoch = 0
        self._reader = reader
        self._orders = EpochOrders(reader.plan, wanted, layout, seed=seed)

    def __len__(self) -> int:
        """Return the number of batches of this process in the next epoch."""
        return self._orders.steps(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        order = self._orders.order(self.epoch)
        self.epoch += 1
        if get_worker_info() is not None:
            raise UsageError(
                "num_workers: got worker processes, expected none, which would each read every pair"
            )
        yield from CachedPreferenceDataset(self._reader, order)


@tells_of_wrong_arguments
def cache_loader(
    cache: str | Path | CacheReader,
    *,
    batch_size: int = 16,
    batch_tokens: int | None = None,
    split: Split = "training",
    eval_fraction: float = 0.05,
    seed: int = 0,
    world_size: int = 1,
    rank: int = 0,
) -> "DataLoader[Batch]":
    """Return a torch `DataLoader` over a cache, whose batches hold whole pairs without padding.

    Every iteration over it is an epoch with an order of its own; no pair is dropped or repeated.

    Args:
        cache: The cache, or where it is.
        batch_size: Pairs in a batch.
        batch_tokens: Most response tokens in a batch, instead.
        split: `training`, `held-out` or `all`; a prompt is held out by its hash, as `train` does.
        eval_fraction: Share of prompts held out.
        seed: Of the orders.
        world_size: Processes that share every step.
        rank: Which of them this is.

    Raises:
        CacheError: There is no complete cache.
        DataError: It has no such pair.
    """
    reader = cache if isinstance(cache, CacheReader) else CacheReader(cache)
    subset = PairSubset(split=split, fraction=eval_fraction)
    wanted = in_subset(reader.prompt_id, subset, reader.evaluation_only)
    if not wanted.any():
        raise DataError(f"{reader.location}: none of its {len(wanted)} pairs is {split}")
    layout = StepLayout(
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        grad_accum=1,
        world_size=world_size,
        rank=rank,
    )
    return DataLoader(EpochsOfPairs(reader, wanted, layout, seed), batch_size=None)


class PreferenceScorer(nn.Module):
    """A head that scores batches of a cache, with a graph into its weights."""

    def __init__(
        self, head: AlignmentHead, cache: str | Path | CacheReader, *, bf16: bool = False
    ) -> None:
        """Join a head and a cache, on the head's device.

        Args:
            head: The head.
            cache: The cache that batches are of, or where it is.
            bf16: Compute products in bfloat16.

        Raises:
            MismatchError: The cache lacks what such a head needs.
        """
        super().__init__()
        reader = cache if isinstance(cache, CacheReader) else CacheReader(cache)
        check_kind(head.config, reader.manifest, reader.location)
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.head = head
        self._base = CachedBase(reader, head.device, dtype)
        self._model = PreferenceModel(head, bf16=bf16)

    def forward(self, batch: Batch) -> Scores:
        """Return what base and head say of a batch's responses at alpha 1."""
        batch = batch.to(self.head.device)
        scores: Scores = self._model(batch, self._base.logits(batch))
        return scores
