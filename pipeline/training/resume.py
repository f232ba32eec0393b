"""Whether a training run may begin or go on in a folder, and what an interruption leaves."""

from pathlib import Path
from typing import Any, Final

from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.runtime.interruption import Interrupted
from mav.pipeline.training.checkpoint import Checkpoint, TrainState, newest_checkpoint
from mav.pipeline.training.options import TrainOptions

_STEP: Final = {
    "pairs_per_step": "pairs in a step (`batch_size` x `grad_accum` x processes)",
    "micro_batches_per_step": "micro-batches in a step (`grad_accum` x processes)",
}

_OF_OLDER_RUNS: Final[dict[str, Any]] = {
    "head_type": "mlp",
    "lambda_kl": 0.0,
    "lambda_sft": 0.0,
    "keep_by": "loss",
}
"""What a run was begun with that recorded none, as there was no other."""


def checkpoint_to_go_on_from(options: TrainOptions) -> Checkpoint | None:
    """Return the checkpoint of the run in the output folder, or None where a new one begins.

    Raises:
        HeadError: It has checkpoints, and all are damaged.
        UsageError: There is a run, and going on with it was not asked for.
    """
    checkpoint = newest_checkpoint(options.folder)
    occupied = checkpoint is not None or (options.folder / "last").exists()
    if occupied and not options.resume:
        raise UsageError(
            f"{options.folder}: holds a training run already. Add `resume=True` to go on with "
            f"it, or name another `output_dir`."
        )
    return checkpoint


def require_same_run(folder: Path, begun: TrainState, now: TrainState) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        folder: Its folder, for the message.
        begun: The state it was left in.
        now: The state it would have begun in with today's settings.

    Raises:
        MismatchError: Naming each difference.
    """
    before = _OF_OLDER_RUNS | begun.trajectory
    changed = [
        f"{_STEP.get(name, name)}: begun with "
        f"{before.get(name)!r}, got {now.trajectory.get(name)!r}"
        for name in now.trajectory | before
        if before.get(name) != now.trajectory.get(name)
    ]
    if begun.cache_identity != now.cache_identity:
        changed.append("cache: another cache than it was begun with")
    if changed:
        listed = "".join(f"\n  - {line}" for line in changed)
        raise MismatchError(f"{folder}: this run cannot go on with other settings:{listed}")


def interrupted(saved: int, step: int, total: int, every: int) -> Interrupted:
    """Return the message about an interrupted run.

    Args:
        saved: Step of the last checkpoint; 0 if there is none.
        step: Steps taken.
        total: Steps of the whole run.
        every: Steps between checkpoints.
    """
    if not saved:
        return Interrupted(
            f"No checkpoint was written yet; the first comes at step {min(every, total)}, and "
            f"{step} steps were taken.",
            "The same command starts over.",
        )
    return Interrupted(
        f"The last checkpoint is of step {saved} of {total}; {step - saved} steps after it are "
        f"not kept.",
        "The same command with `resume=True` continues from there.",
    )
