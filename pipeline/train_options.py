"""What a training run is asked for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cache_schema.errors import UsageError
from pipeline.objective import Objective, ObjectiveName

_NOT_THE_TRAJECTORY: Final = ("cache", "eval_cache", "output_dir", "eval_steps", "resume")
"""The cache is compared by content; of an `eval_cache` only its presence matters."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `mav train` is asked for.

    Attributes:
        cache: Folder or URL of the cache to train from.
        output_dir: Folder for heads, checkpoint and metrics.
        eval_cache: Another cache to evaluate on, all of it.
        eval_fraction: Share of prompts held out of `cache`, where there is no `eval_cache`.
        expansion_size: Width of the head's widest layer.
        dropout: Dropout after the fusion layer.
        objective: `mav` or `dpo`; see `Objective`.
        beta: Inverse temperature of the objective.
        lambda_l2: Weight of the penalty on alignment vectors.
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are clipped to this norm.
        num_epochs: Passes over the cache.
        batch_size: Pairs in a micro-batch.
        grad_accum: Micro-batches in a step.
        warmup_steps: Steps of linear warm-up; a tenth of all, at most 100, if None.
        eval_steps: Steps between evaluations and checkpoints; four times an epoch if None.
        bf16: Compute in bfloat16; weights stay float32.
        seed: Seed of initialisation, order and dropout.
        resume: Go on from the checkpoint in `output_dir`.
    """

    cache: str | Path
    output_dir: Path
    eval_cache: str | Path | None = None
    eval_fraction: float = 0.05
    expansion_size: int = 16384
    dropout: float = 0.1
    objective: ObjectiveName = "dpo"
    beta: float = 0.1
    lambda_l2: float = 0.001
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    num_epochs: int = 1
    batch_size: int = 8
    grad_accum: int = 2
    warmup_steps: int | None = None
    eval_steps: int | None = None
    bf16: bool = True
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("expansion_size", "num_epochs", "batch_size", "grad_accum", "eval_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_flag(name)}: got {value}, expected at least 1")
        for name in ("beta", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{_flag(name)}: got {getattr(self, name)}, expected more than 0")
        for name in ("lambda_l2", "weight_decay", "warmup_steps", "seed"):
            if not (getattr(self, name) or 0) >= 0:
                raise UsageError(f"{_flag(name)}: got {getattr(self, name)}, expected at least 0")
        for name in ("dropout", "eval_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{_flag(name)}: got {getattr(self, name)}, expected 0 or more and less than 1"
                )

    @property
    def held_out_fraction(self) -> float:
        """Share of the cache's prompts that are not trained on: none beside an `eval_cache`."""
        return 0.0 if self.eval_cache is not None else self.eval_fraction

    def as_objective(self) -> Objective:
        """Return the objective these options describe."""
        return Objective(name=self.objective, beta=self.beta, lambda_l2=self.lambda_l2)

    def trajectory(self) -> dict[str, Any]:
        """Return the options that decide every weight, and so must be the same on resuming."""
        values = dataclasses.asdict(self) | {"eval_fraction": self.held_out_fraction}
        return {name: value for name, value in values.items() if name not in _NOT_THE_TRAJECTORY}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def learning_rate_at(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the learning rate of a step counted from 0: linear warm-up, then linear decay."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / max(1, total - warmup)
