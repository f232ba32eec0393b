"""The processes of one run, which talk through pipes as those of `torchrun` do through sockets.

Whoever waits for one that has ended is told so, and fails, as in `runtime.distributed`.
"""

import os
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from mav.cache_schema.errors import MAVError
from tests.support.faults.fork_server import fork

_T = TypeVar("_T")


class Member:
    """One process of a run, as the others and `extract` see it.

    Attributes:
        rank: Its number.
        count: Number of processes.
    """

    def __init__(self, rank: int, count: int, others: "list[Connection[Any, Any]]") -> None:
        self.rank = rank
        self.count = count
        self._others = others  # all others for the first process, the first one for the others

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Call a function on the first process; return its result, or raise its error, on all."""
        if self.rank:
            value, error = self._receive(self._others[0])
            if error is not None:
                raise MAVError(f"The first process failed: {error}")
            first: _T = value
            return first
        try:
            made = make()
        except Exception as error:
            self._tell((None, str(error)))
            raise
        self._tell((made, None))
        return made

    def gather(self, value: _T) -> list[_T]:
        """Return the values of all processes, having waited for them."""
        if self.rank:
            self._tell(value)
            found: list[_T] = self._receive(self._others[0])
            return found
        values = [value, *(self._receive(other) for other in self._others)]
        self._tell(values)
        return values

    def _tell(self, message: Any) -> None:
        for other in self._others:
            try:
                other.send(message)
            except OSError:
                continue  # it has ended; whoever waits for it will see

    def _receive(self, other: "Connection[Any, Any]") -> Any:
        try:
            return other.recv()
        except (EOFError, OSError) as error:
            raise MAVError("Another process of this run has failed") from error


def launch(count: int, work: Callable[[Member], None]) -> list[int]:
    """Start the processes of a run; return their process ids, the first one's first.

    Args:
        count: Number of processes.
        work: What each does; with an exception of its own each ends with status 1.
    """
    pipes: list[tuple[Connection[Any, Any], Connection[Any, Any]]] = [
        Pipe() for _ in range(count - 1)
    ]
    ends = [end for pipe in pipes for end in pipe]

    def member(rank: int) -> None:
        mine = [pipe[0] for pipe in pipes] if rank == 0 else [pipes[rank - 1][1]]
        for end in ends:
            if end not in mine:
                end.close()
        work(Member(rank, count, mine))

    started = [fork(lambda rank=rank: member(rank)) for rank in range(count)]  # type: ignore[misc]
    for end in ends:
        end.close()
    return started


def reap(processes: list[int], *, wait: bool) -> dict[int, int]:
    """Return the exit codes, below 0 for signals, of the processes that have ended.

    Args:
        processes: Children of this process.
        wait: Whether to wait for all of them.
    """
    codes = {}
    for process in processes:
        found, status = os.waitpid(process, 0 if wait else os.WNOHANG)
        if found:
            codes[process] = os.waitstatus_to_exitcode(status)
    return codes
