"""What a training calls while it runs: functions of the user's at logs, evaluations and saves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mav.cache_schema.errors import UsageError

_EVENTS = ("on_log", "on_evaluate", "on_save")


class TrainCallback:
    """Called by `train` in the first of the processes; a subclass has what it wants of these.

    An error that one raises ends the training, as Ctrl-C does: the last checkpoint stays.
    """

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Take what is logged: means since the last log, under the names in metrics.jsonl."""

    def on_evaluate(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of held-out pairs, under TRL's names without `eval_`."""

    def on_save(self, step: int, folder: Path, *, best: bool) -> None:
        """Take a checkpoint that was written.

        Args:
            step: Optimizer steps taken.
            folder: `output_dir`.
            best: Whether its head is the best so far, and so is in `folder / "best"`.
        """


def require_callbacks(callbacks: Sequence[Any]) -> tuple[Any, ...]:
    """Return callbacks, each of which has one of the three methods or more.

    Raises:
        UsageError: One has none.
    """
    given = tuple(callbacks) if isinstance(callbacks, list | tuple) else (callbacks,)
    for each in given:
        if isinstance(each, type) or not any(
            callable(getattr(each, name, None)) for name in _EVENTS
        ):
            raise UsageError(
                f"callbacks: got {each!r}, expected objects with {', '.join(_EVENTS)}, such as of "
                f"a subclass of TrainCallback"
            )
    return given


def call(callbacks: Sequence[Any], event: str, *args: Any, **named: Any) -> None:
    """Call the method of an event of all callbacks that have it, in their order."""
    for each in callbacks:
        function = getattr(each, event, None)
        if function is not None:
            function(*args, **named)
