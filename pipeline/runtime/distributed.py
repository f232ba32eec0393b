"""The processes of one run: what `accelerate launch` or `torchrun` started together."""

import atexit
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

from mav.cache_schema.errors import MAVError, UsageError

_PATIENCE: Final = timedelta(days=30)
"""Processes wait for each other only at the end of uneven shares of a long extraction."""

_T = TypeVar("_T")


class Processes:
    """This process, among those launched together.

    Attributes:
        rank: Its number.
        count: Number of processes.
        local_rank: Its number on this machine.
    """

    def __init__(self, *, on_cpu: bool) -> None:
        """Connect to the other processes, if any.

        Args:
            on_cpu: Whether they compute on CPUs.

        Raises:
            UsageError: They cannot reach each other.
        """
        self.rank, self.count, self.local_rank = 0, launched(), 0
        if self.count > 1:
            from accelerate import PartialState

            try:
                state: Any = PartialState(cpu=on_cpu, timeout=_PATIENCE)
            except (ValueError, RuntimeError) as error:
                raise UsageError(
                    f"{self.count} processes were launched, but they cannot be connected: {error}. "
                    f"Launch them with `accelerate launch` or `torchrun`."
                ) from error
            require_joined(state.num_processes)
            leave_at_exit()
            self.rank, self.local_rank = state.process_index, state.local_process_index
            let_first_process_log(self.rank)

    @property
    def first(self) -> bool:
        """Whether this is the first process, which logs for all."""
        return self.rank == 0

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Call a function on the first process; return its result, or raise its error, on all."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = str(error)
                broadcast_object_list(outcome)
                raise
        self._together(lambda: broadcast_object_list(outcome))
        if outcome[1] is not None:
            raise MAVError(f"The first process failed: {outcome[1]}")
        result: _T = outcome[0]
        return result

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, having waited for them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[_T] = self._together(lambda: gather_object([value]))
        return gathered

    def _together(self, work: Callable[[], Any]) -> Any:
        """Run a collective operation; it fails if another process has ended."""
        try:
            return work()
        except RuntimeError as error:
            raise MAVError(
                f"Another process of this run has failed ({str(error).splitlines()[0]}). Run the "
                f"same command again; it resumes where it stopped."
            ) from error


def launched() -> int:
    """Return how many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(launched())))


def let_first_process_log(rank: int) -> None:
    """Let only the first of several processes log; the others log errors only.

    Args:
        rank: Number of this process.
    """
    if rank:
        logging.getLogger("mav").setLevel(logging.ERROR)


def leave_at_exit() -> None:
    """Destroy the process group before the interpreter exits, or it may abort instead."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_leave)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def require_joined(seen: int) -> None:
    """Refuse processes that were launched together but are not connected.

    Each would do all of the work and write to the same place.

    Args:
        seen: Number of connected processes, including this one.

    Raises:
        UsageError: They are not connected.
    """
    if launched() != seen:
        raise UsageError(
            f"{launched()} processes were launched, but this one sees {seen}. On a machine "
            f"without an accelerator, set ACCELERATE_USE_CPU=1."
        )
