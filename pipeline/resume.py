"""Whether a training run may begin or go on in a folder."""

from pathlib import Path

from cache_schema.errors import MismatchError, UsageError
from pipeline.checkpoint import TrainState, read_state
from pipeline.train_options import TrainOptions


def state_to_go_on_from(options: TrainOptions) -> TrainState | None:
    """Return the state of the run in the output folder, or None where a new one begins.

    Raises:
        HeadError: Its checkpoint is damaged.
        UsageError: There is a run, and going on with it was not asked for.
    """
    state = read_state(options.output_dir)
    occupied = state is not None or (options.output_dir / "last").exists()
    if occupied and not options.resume:
        raise UsageError(
            f"{options.output_dir}: holds a training run already. Add --resume to go on with it, "
            f"or name another --output-dir."
        )
    return state


def require_same_run(folder: Path, begun: TrainState, now: TrainState) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        folder: Its folder, for the message.
        begun: The state it was left in.
        now: The state it would have begun in with today's settings.

    Raises:
        MismatchError: Naming each difference.
    """
    changed = [
        f"--{name.replace('_', '-')}: begun with {begun.trajectory.get(name)!r}, got {value!r}"
        for name, value in now.trajectory.items()
        if begun.trajectory.get(name) != value
    ]
    if begun.cache_identity != now.cache_identity:
        changed.append("--cache: another cache than it was begun with")
    if begun.world_size != now.world_size:
        changed.append(f"processes: begun with {begun.world_size}, got {now.world_size}")
    if changed:
        listed = "".join(f"\n  - {line}" for line in changed)
        raise MismatchError(f"{folder}: this run cannot go on with other settings:{listed}")
