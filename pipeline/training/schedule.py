"""How long a run is, and the learning rate of each step."""

from dataclasses import dataclass
from typing import Final

_MOST_WARMUP: Final = 100


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The steps of a run.

    Attributes:
        epoch_steps: Steps of each epoch; with batches by tokens they are not all the same.
        peak: Largest learning rate.
        warmup: Steps of linear warm-up; a tenth of all, at most 100, if None.
    """

    epoch_steps: tuple[int, ...]
    peak: float
    warmup: int | None = None

    @property
    def total(self) -> int:
        """Steps of the run."""
        return sum(self.epoch_steps)

    def position(self, step: int) -> tuple[int, int]:
        """Return the epoch that a step counted from 0 is in, and its number in it."""
        for epoch, steps in enumerate(self.epoch_steps):
            if step < steps:
                return epoch, step
            step -= steps
        return len(self.epoch_steps), 0

    def epochs(self, step: int) -> float:
        """Return how many epochs are done after so many steps."""
        epoch, inside = self.position(step)
        return epoch + (inside / self.epoch_steps[epoch] if inside else 0.0)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step counted from 0: linear warm-up, then linear decay."""
        warmup = min(_MOST_WARMUP, self.total // 10) if self.warmup is None else self.warmup
        if step < warmup:
            return self.peak * (step + 1) / warmup
        return self.peak * (self.total - step) / max(1, self.total - warmup)
