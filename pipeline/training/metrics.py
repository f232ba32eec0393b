"""Metrics averaged over pairs, micro-batches and processes."""

import math
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mav.pipeline.training.loss import Scores
from mav.pipeline.training.objectives import Objective


class MetricAccumulator:
    """Sums over pairs since the last `reduce`, which averages them over all processes."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: list[Tensor] = []
        self._started = perf_counter()

    def add(self, scores: Scores, loss: Tensor, objective: Objective) -> None:
        """Add a micro-batch.

        Args:
            scores: Its scores.
            loss: Its loss, summed over pairs.
            objective: The objective, for rewards.
        """
        of_batch = {
            "pairs": loss.new_tensor(len(scores.chosen_logps)),
            "tokens": loss.new_tensor(len(scores.squared_norm)),
            "loss": loss.detach(),
            **scores.metrics(objective),
            "squared_norm": scores.squared_norm.detach().sum(),
        }
        self._names = sorted(of_batch)
        # Added up later and on the CPU: in float64, which not every device has, and without
        # holding up the device at every micro-batch.
        self._parts.append(torch.stack([of_batch[name].to(loss.dtype) for name in self._names]))

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over pairs (over tokens for `squared_norm`) and start again."""
        own = torch.stack(self._parts).cpu().double().sum(0).tolist()
        every = gather_object([own]) if accelerator.num_processes > 1 else [own]
        sums = {
            name: math.fsum(values)
            for name, values in zip(self._names, zip(*every, strict=True), strict=True)
        }
        pairs, tokens = sums.pop("pairs"), sums.pop("tokens")
        means = {name: value / pairs for name, value in sums.items()}
        means["squared_norm"] = sums["squared_norm"] / tokens
        now = perf_counter()
        means["tokens_per_second"] = tokens / (now - self._started)
        self._parts, self._started = [], now
        return means
