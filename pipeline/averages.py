"""Metrics gathered over pairs, micro-batches and processes."""

from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.objective import Objective, Scores


class Averages:
    """Sums over pairs since the last `take`, as one mean over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._started = perf_counter()

    def add(self, scores: Scores, loss: Tensor, objective: Objective) -> None:
        """Add a micro-batch.

        Args:
            scores: Its scores.
            loss: Its loss, summed over pairs.
            objective: The objective, for rewards.
        """
        pairs = loss.new_tensor(len(scores.chosen), dtype=torch.float64)
        found = {
            "pairs": pairs,
            "tokens": loss.new_tensor(len(scores.squared_norm), dtype=torch.float64),
            "loss": loss.detach(),
            **scores.metrics(objective),
            "squared_norm": scores.squared_norm.detach().sum(),
        }
        for name, value in found.items():
            wide = value.double()
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over pairs (over tokens for `squared_norm`) and begin anew."""
        names = sorted(self._sums)
        total = accelerator.reduce(torch.stack([self._sums[name] for name in names]), "sum")
        sums = dict(zip(names, total.tolist(), strict=True))
        pairs, tokens = sums.pop("pairs"), sums.pop("tokens")
        means = {name: value / pairs for name, value in sums.items()}
        means["squared_norm"] = sums["squared_norm"] / tokens
        now = perf_counter()
        means["tokens_per_second"] = tokens / (now - self._started)
        self._sums, self._started = {}, now
        return means
