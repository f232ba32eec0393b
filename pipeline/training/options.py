"""What a training run is asked for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mav.cache_schema.errors import UsageError
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.runtime.compute_dtype import AUTO
from mav.pipeline.training.loss import Objective, ObjectiveName
from mav.pipeline.training.optimizer import OptimizerName

_NOT_THE_TRAJECTORY: Final = (
    "cache",
    "eval_cache",
    "output_dir",
    "eval_steps",
    "early_stopping",
    "report_to",
    "workers",
    "shard",
    "resume",
    "batch_size",
    "grad_accum",
)
"""The cache is compared by content; of an `eval_cache` only its presence matters; batches are
compared by what a step takes of the order, over all processes."""

_DEFAULT_BATCH_SIZE: Final = 16

Tracker = Literal["tensorboard", "wandb", "trackio", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `mav train` is asked for.

    Attributes:
        cache: Folder or URL of the cache to train from.
        output_dir: Folder for heads, checkpoint and metrics.
        eval_cache: Another cache to evaluate on, all of it.
        eval_fraction: Share of prompts held out of `cache`, where there is no `eval_cache`.
        expansion_size: Width of the head's widest layer; by the base's size if None (see
            `head_sizes`).
        dropout: Dropout after the fusion layer.
        objective: `mav` or `dpo`; see `Objective`.
        beta: Inverse temperature of the objective.
        lambda_l2: Weight of the penalty on alignment vectors.
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are clipped to this norm.
        num_epochs: Passes over the cache.
        batch_size: Pairs in a micro-batch; 16 if None.
        batch_tokens: Most response tokens in a micro-batch, in place of `batch_size`.
        grad_accum: Micro-batches of each process in a step.
        warmup_steps: Steps of linear warm-up; a tenth of all, at most 100, if None.
        eval_steps: Steps between evaluations and checkpoints; four times per epoch if None.
        bf16: Compute in bfloat16, or in float32; `auto` is bfloat16 where the device multiplies it
            natively, and on resuming what the run was begun with. Weights stay float32.
        optimizer: `adamw` or `adamw-8bit`; see `make_optimizer`.
        early_stopping: Evaluations without a better held-out loss after which to stop.
        report_to: Tracker that metrics go to, beside `metrics.jsonl`.
        workers: Threads that read the cache.
        shard: Whether to cut the head into shards, one per process (FSDP2), where there are
            several.
        seed: Seed of initialisation, order and dropout.
        resume: Go on from the checkpoint in `output_dir`.
    """

    cache: str | Path
    output_dir: str | Path
    eval_cache: str | Path | None = None
    eval_fraction: float = 0.05
    expansion_size: int | None = None
    dropout: float = 0.1
    objective: ObjectiveName = "dpo"
    beta: float = 0.1
    lambda_l2: float = 0.001
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    num_epochs: int = 1
    batch_size: int | None = None
    batch_tokens: int | None = None
    grad_accum: int = 1
    warmup_steps: int | None = None
    eval_steps: int | None = None
    bf16: bool | Literal["auto"] = AUTO
    optimizer: OptimizerName = "adamw"
    early_stopping: int | None = None
    report_to: Tracker = "tensorboard"
    workers: int = 2
    shard: bool = False
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name in (
            "expansion_size",
            "num_epochs",
            "batch_size",
            "batch_tokens",
            "grad_accum",
            "eval_steps",
            "early_stopping",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{_flag(name)}: got {value}, expected at least 1")
        for name in ("beta", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{_flag(name)}: got {getattr(self, name)}, expected more than 0")
        for name in ("lambda_l2", "weight_decay", "warmup_steps", "workers", "seed"):
            if not (getattr(self, name) or 0) >= 0:
                raise UsageError(f"{_flag(name)}: got {getattr(self, name)}, expected at least 0")
        for name in ("dropout", "eval_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"{_flag(name)}: got {getattr(self, name)}, expected 0 or more and less than 1"
                )

        if self.bf16 not in (True, False, AUTO):
            raise UsageError(f"--bf16: got {self.bf16!r}, expected auto, True or False")
        if self.batch_size is not None and self.batch_tokens is not None:
            raise UsageError(
                f"--batch-size {self.batch_size} and --batch-tokens {self.batch_tokens}: a batch "
                f"is counted in pairs or in tokens; give one of them"
            )
        if (
            self.early_stopping is not None
            and self.held_out_fraction == 0
            and self.eval_cache is None
        ):
            raise UsageError("--early-stopping: nothing is held out to evaluate on")

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    @property
    def held_out_fraction(self) -> float:
        """Share of the cache's prompts that are not trained on: none beside an `eval_cache`."""
        return 0.0 if self.eval_cache is not None else self.eval_fraction

    def as_objective(self) -> Objective:
        """Return the objective these options describe."""
        return Objective(name=self.objective, beta=self.beta, lambda_l2=self.lambda_l2)

    def step_shape(self, world_size: int, rank: int) -> StepLayout:
        """Return how the pairs of a step are shared out."""
        return StepLayout(
            batch_size=self.batch_size or _DEFAULT_BATCH_SIZE,
            batch_tokens=self.batch_tokens,
            grad_accum=self.grad_accum,
            world_size=world_size,
            rank=rank,
        )

    def trajectory(self, world_size: int) -> dict[str, Any]:
        """Return what decides every weight, and so must be the same on resuming."""
        values = dataclasses.asdict(self) | {"eval_fraction": self.held_out_fraction}
        kept = {name: value for name, value in values.items() if name not in _NOT_THE_TRAJECTORY}
        shape = self.step_shape(world_size, 0)
        if self.batch_tokens is None:
            return kept | {"pairs_per_step": shape.batch_size * shape.micro_batches}
        return kept | {"micro_batches_per_step": shape.micro_batches}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
