"""The outcome of a training run."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mav.pipeline.runtime.choices import HeadKind, KeepBy


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The outcome of a training run.

    Attributes:
        output_dir: Its folder; `best` and `last` in it are heads.
        steps: Optimizer steps of the whole run.
        best_step: Step of the best head, or None where nothing was held out.
        keep_by: What it is the best in.
        stopped_early: Whether it ended before its last step, since it no longer improved.
        evaluation: Metrics of the last evaluation; empty if this call made none.
        head_type: Kind of the head.
        alignment_parameters: Parameters of the alignment network.
        total_parameters: Parameters with the fusion layer.
        training_flops: Operations each response token took; see `HeadConfig`.
        decoding_flops: Operations the head adds to each token of decoding; likewise.
        computed_in: Type of the products.
        kl_per_token: Mean KL(aligned || base) of the best head at alpha 1 over at most 64 held-out
            pairs, in nats per token; None where nothing is held out, or nothing was trained.
        hardly_moved: Whether that is so small that the head leaves the base about as it is.
    """

    output_dir: Path
    steps: int
    best_step: int | None
    keep_by: KeepBy
    stopped_early: bool
    evaluation: dict[str, float]
    head_type: HeadKind
    alignment_parameters: int
    total_parameters: int
    training_flops: int
    decoding_flops: int
    computed_in: str
    kl_per_token: float | None
    hardly_moved: bool | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}
