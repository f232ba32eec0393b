"""Metrics averaged over pairs, micro-batches and processes."""

import math
from time import perf_counter
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mav.pipeline.training.loss import Scores
from mav.pipeline.training.objectives import Objective

_OF_TOKENS: Final = ("squared_norm", "kl")


class MetricAccumulator:
    """Sums over pairs since the last `reduce`, which averages them over all processes."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: list[Tensor] = []
        self._margins: list[Tensor] = []
        self._started = perf_counter()

    def add(
        self, scores: Scores, loss: Tensor, objective: Objective, *, keep_margins: bool = False
    ) -> None:
        """Add a micro-batch.

        Args:
            scores: Its scores.
            loss: Its loss, summed over pairs.
            objective: The objective, for rewards.
            keep_margins: Whether to keep what `margins` returns.
        """
        if keep_margins:
            self._margins.append(scores.margins())
        of_batch = {
            "pairs": loss.new_tensor(len(scores.chosen_logps)),
            "tokens": loss.new_tensor(len(scores.squared_norm)),
            "loss": loss.detach(),
            **scores.metrics(objective),
            "squared_norm": scores.squared_norm.detach().sum(),
        }
        if scores.kl is not None:
            of_batch["kl"] = scores.kl.detach().sum()
        self._names = sorted(of_batch)
        # Added up later and on the CPU: in float64, which not every device has, and without
        # holding up the device at every micro-batch.
        self._parts.append(torch.stack([of_batch[name].to(loss.dtype) for name in self._names]))

    def margins(self, accelerator: Accelerator) -> Tensor:
        """Return the margins that were kept, of all processes, smallest first: float64 [P].

        In this order what is made of them does not depend on how pairs were shared out.
        """
        own = torch.cat(self._margins).cpu().double().tolist()
        every = gather_object([own]) if accelerator.num_processes > 1 else [own]
        self._margins = []
        return torch.tensor(sorted(m for some in every for m in some), dtype=torch.float64)

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over pairs (over tokens for `squared_norm` and `kl`) and start again."""
        own = torch.stack(self._parts).cpu().double().sum(0).tolist()
        every = gather_object([own]) if accelerator.num_processes > 1 else [own]
        sums = {
            name: math.fsum(values)
            for name, values in zip(self._names, zip(*every, strict=True), strict=True)
        }
        pairs, tokens = sums.pop("pairs"), sums.pop("tokens")
        means = {name: value / pairs for name, value in sums.items()}
        means |= {name: sums[name] / tokens for name in _OF_TOKENS if name in sums}
        now = perf_counter()
        means["tokens_per_second"] = tokens / (now - self._started)
        self._parts, self._started = [], now
        return means
