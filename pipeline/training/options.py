"""What a training run is asked for."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import HeadKind, KeepBy, OptimizerName, Tracker
from mav.pipeline.runtime.options import known, option
from mav.pipeline.training.objective_options import ObjectiveOptions

if TYPE_CHECKING:
    from mav.pipeline.loader.sampler import StepLayout

_NOT_THE_TRAJECTORY: Final = (
    "cache",
    "eval_cache",
    "output_dir",
    "eval_steps",
    "early_stopping",
    "report_to",
    "run_name",
    "project",
    "target_kl",
    "workers",
    "shard",
    "resume",
    "batch_size",
    "grad_accum",
)
"""The cache is compared by content; of an `eval_cache` only its presence matters; batches are
compared by what a step takes of the order, over all processes."""

_DEFAULT_BATCH_SIZE: Final = 16


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ObjectiveOptions):
    """What `mav train` is asked for; the objective's own options are above.

    Attributes:
        cache: Folder or URL of the cache to train from.
        output_dir: Folder for heads, checkpoint and metrics.
        eval_cache: Another cache to evaluate on, all of it.
        eval_fraction: Share of prompts held out of `cache`, where there is no `eval_cache`.
        head_type: What the head is made of and acts on; see `AlignmentHead`.
        expansion_size: Width of the widest layer of an `mlp`; by the base's size if None (see
            `head_config`).
        rank: Width of the narrow layer of the other kinds; 256 for a `bottleneck` if None, and an
            `unembedding` without such a layer.
        dropout: Dropout after the fusion layer, or of a `bottleneck`'s state; if None 0.1, and 0
            for a `bottleneck`.
        learning_rate: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: Gradients are clipped to this norm.
        num_epochs: Passes over the cache.
        batch_size: Pairs in a micro-batch; 16 if None.
        batch_tokens: Most response tokens in a micro-batch, instead of `batch_size`.
        grad_accum: Micro-batches of each process in a step.
        warmup_steps: Steps of linear warm-up; a tenth of all, at most 100, if None.
        eval_steps: Steps between evaluations and checkpoints; four times per epoch if None.
        bf16: Compute in bfloat16, or in float32; `auto` is bfloat16 where the device multiplies it
            natively, and on resuming what the run was begun with. Weights stay float32.
        optimizer: `adamw` or `adamw-8bit`; see `make_optimizer`.
        ema: Decay of the moving average of the weights that is evaluated and saved as the head, or
            `bema` for TRL's bias-corrected one, see `AveragedWeights`; none if None.
        keep_by: What the best head is the best in; see `criteria`.
        early_stopping: Evaluations without a better head after which to stop.
        report_to: Tracker that metrics go to, beside `metrics.jsonl`.
        run_name: Name of the run there.
        project: Project of the run, of trackers that have projects; `mav` if None.
        target_kl: KL per token to the base, in nats; the strength that reaches it on held-out pairs
            is written into the best head as the one to start from.
        workers: Threads that read the cache.
        shard: Whether to cut the head into shards, one per process (FSDP2), where there are
            several.
        seed: Seed of initialisation, order and dropout.
        resume: Go on from the checkpoint in `output_dir`.
    """

    cache: str | Path = field(metadata=known(help="Cache to train from: folder or URL."))
    output_dir: str | Path = field(metadata=known(help="Where heads are written."))
    eval_cache: str | Path | None = option(None, help="Another cache to evaluate on.")
    eval_fraction: float = option(
        0.05, number=True, at_least=0, below=1, help="Share of prompts held out."
    )
    head_type: HeadKind = option(
        "mlp",
        choices=get_args(HeadKind),
        help="mlp is the published one; unembedding shifts the state before the base's own output "
        "embedding; bottleneck is PALC's.",
    )
    expansion_size: int | None = option(
        None,
        whole=True,
        at_least=1,
        default_text="by the base's size",
        help="Width of the widest layer of an mlp; published: 16384.",
    )
    rank: int | None = option(
        None,
        whole=True,
        at_least=1,
        default_text="bottleneck 256, unembedding none",
        help="Width of the narrow layer of other kinds.",
    )
    dropout: float | None = option(
        None,
        number=True,
        at_least=0,
        below=1,
        default_text="0.1; bottleneck 0",
        help="Dropout after the fusion layer.",
    )
    learning_rate: float = option(1e-4, number=True, above=0, help="Peak learning rate.")
    weight_decay: float = option(0.01, number=True, at_least=0, help="AdamW's weight decay.")
    max_grad_norm: float = option(1.0, number=True, above=0, help="Gradients are clipped to this.")
    num_epochs: int = option(1, whole=True, at_least=1, help="Passes over the cache.")
    batch_size: int | None = option(
        None, whole=True, at_least=1, default_text="16", help="Pairs in a micro-batch."
    )
    batch_tokens: int | None = option(
        None,
        whole=True,
        at_least=1,
        help="Most response tokens in a micro-batch, instead of --batch-size.",
    )
    grad_accum: int = option(
        1, whole=True, at_least=1, help="Micro-batches of each process in a step."
    )
    warmup_steps: int | None = option(
        None,
        whole=True,
        at_least=0,
        default_text="a tenth, at most 100",
        help="Linear warm-up.",
    )
    eval_steps: int | None = option(
        None,
        whole=True,
        at_least=1,
        default_text="a quarter epoch",
        help="Steps between evaluations.",
    )
    bf16: bool | Literal["auto"] = option(
        "auto",
        help="Compute in bfloat16; auto does if the device has it natively. Weights are float32.",
    )
    optimizer: OptimizerName = option(
        "adamw",
        choices=get_args(OptimizerName),
        help="adamw-8bit keeps its moments in one byte each; needs torchao.",
    )
    ema: float | Literal["bema"] | None = option(
        None,
        number=True,
        words=("bema",),
        at_least=0,
        below=1,
        metavar="DECAY",
        help="Save the moving average of the weights as the head; bema is TRL's form of it.",
    )
    keep_by: KeepBy = option(
        "loss", choices=get_args(KeepBy), help="What the head kept as best is the best in."
    )
    early_stopping: int | None = option(
        None,
        whole=True,
        at_least=1,
        metavar="N",
        help="Stop after N evaluations without a better head.",
    )
    report_to: Tracker = option(
        "tensorboard", choices=get_args(Tracker), help="Tracker in addition to metrics.jsonl."
    )
    run_name: str | None = option(None, help="Name of the run, for the tracker.")
    project: str | None = option(
        None, default_text="mav", help="Project of the run, in wandb or trackio."
    )
    target_kl: float | None = option(
        None,
        number=True,
        above=0,
        metavar="NATS",
        help="Recommend the alpha at which the head is so far from the base, per token.",
    )
    workers: int = option(2, whole=True, at_least=0, help="Threads that read the cache.")
    shard: bool = option(False, help="Cut the head into shards, one per process (FSDP2).")
    seed: int = option(0, whole=True, at_least=0, help="Seed of initialisation, order and dropout.")
    resume: bool = option(False, help="Resume the run in --output-dir, if there is one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bf16 not in (True, False, "auto"):
            raise UsageError(f"bf16: got {self.bf16!r}, expected auto, True or False")
        foreign = "rank" if self.head_type == "mlp" else "expansion_size"
        if getattr(self, foreign) is not None:
            kinds = "unembedding and bottleneck" if foreign == "rank" else "mlp"
            raise UsageError(
                f"{foreign}: got {getattr(self, foreign)} with `head_type` {self.head_type}, "
                f"expected none; it is a size of {kinds}"
            )
        if self.batch_size is not None and self.batch_tokens is not None:
            raise UsageError(
                f"batch_size: got {self.batch_size}, and `batch_tokens` {self.batch_tokens}; a "
                f"batch is counted in pairs or in tokens; give one of them"
            )
        if self.project is not None and self.report_to not in ("wandb", "trackio"):
            raise UsageError(
                f"project: got {self.project!r} with `report_to` {self.report_to}, which has no "
                f"projects; expected wandb or trackio"
            )
        if self.run_name is not None and self.report_to == "none":
            raise UsageError(f"run_name: got {self.run_name!r}, but `report_to` is none")
        if self.held_out_fraction == 0 and self.eval_cache is None:
            if self.target_kl is not None:
                raise UsageError(
                    "target_kl: nothing is held out to measure it on; use a larger "
                    "`eval_fraction` or an `eval_cache`"
                )
            if self.early_stopping is not None:
                raise UsageError("early_stopping: nothing is held out to evaluate on")
            if self.keep_by not in ("loss", "last"):
                raise UsageError(
                    f"keep_by: got {self.keep_by}, but nothing is held out to evaluate on; use a "
                    f"larger `eval_fraction` or an `eval_cache`"
                )
        if self.early_stopping is not None and self.keep_by == "last":
            raise UsageError(
                f"early_stopping: got {self.early_stopping} with `keep_by` last, by which every "
                f"head is better than the one before it"
            )

    def _default_lambda_l2(self) -> float:
        # A shift of the state changes every logit, so the same penalty would hold it at the base.
        return 0.0 if self.head_type == "unembedding" else super()._default_lambda_l2()

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    @property
    def held_out_fraction(self) -> float:
        """Share of the cache's prompts that are not trained on: none beside an `eval_cache`."""
        return 0.0 if self.eval_cache is not None else self.eval_fraction

    def step_shape(self, world_size: int, rank: int) -> "StepLayout":
        """Return how the pairs of a step are shared out."""
        from mav.pipeline.loader.sampler import StepLayout

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
