"""Parts with a budget each, in a worker process that is replaced when one fails or is late."""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, Final, Literal

from benchmarks.gpu.place import Place, Settings
from benchmarks.gpu.verdicts import told
from benchmarks.synthetic import say
from mav.pipeline.runtime.memory import free_memory

State = Literal["done", "failed", "late", "died", "left out"]

_LEAST_SECONDS: Final = 3.0
"""A part is not begun with less."""
_START_SECONDS: Final = 60.0
"""That a new worker may take to import what it needs, beside its part's own."""
_END_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the benchmark.

    Attributes:
        name: What it is called.
        work: `module:function`, which is given a `Place` and a `Tell`.
        seconds: Most seconds it may take.
    """

    name: str
    work: str
    seconds: float

    def load(self) -> Callable[..., None]:
        """Return the function."""
        module, _, name = self.work.partition(":")
        found: Callable[..., None] = getattr(import_module(module), name)
        return found


@dataclass(kw_only=True)
class Outcome:
    """What came of a part.

    Attributes:
        state: Whether it was done, and if not, why.
        seconds: What it took.
        figures: What it told, also where it was not done.
        error: What went wrong.
    """

    state: State
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def run_parts(
    parts: Sequence[Part],
    settings: Settings,
    seconds: float,
    changed: Callable[[Mapping[str, Outcome]], None],
) -> dict[str, Outcome]:
    """Run parts one after the other.

    Args:
        parts: The parts.
        settings: What workers are told.
        seconds: Most seconds of all together; parts that no time is left for are left out.
        changed: Called with all outcomes whenever there is another.
    """
    ends = monotonic() + seconds
    found: dict[str, Outcome] = {}
    worker: _Worker | None = None
    try:
        for part in parts:
            left = ends - monotonic()
            if left < _LEAST_SECONDS:
                found[part.name] = Outcome(state="left out", error="no time was left")
                changed(found)
                continue
            say(f"{part.name}: at most {min(part.seconds, left):.0f} s")
            worker = worker or _Worker(settings)
            found[part.name] = worker.run(part, left)
            if found[part.name].state != "done":
                # An error on a GPU can spoil all that comes after it in the same process.
                worker.kill()
                worker = None
            say(f"{part.name}: {found[part.name].state}, {found[part.name].seconds:.1f} s")
            changed(found)
    finally:
        if worker is not None:
            worker.end()
    return found


class _Worker:
    """A process that runs parts as it is told to."""

    def __init__(self, settings: Settings) -> None:
        fresh = multiprocessing.get_context("spawn")
        self._ours, theirs = fresh.Pipe()
        self._process = fresh.Process(target=_serve, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()
        self._is_new = True

    def run(self, part: Part, most: float) -> Outcome:
        """Run a part, for so many seconds at most."""
        started = monotonic()
        allowed = min(part.seconds, most)
        ends = started + min(most, part.seconds + (_START_SECONDS if self._is_new else 0.0))
        self._is_new = False
        outcome = Outcome(state="late", error=f"took longer than {allowed:.0f} s")
        try:
            self._ours.send((part, allowed))
            while self._ours.poll(max(0.0, ends - monotonic())):
                kind, said = self._ours.recv()
                if kind == "figures":
                    outcome.figures |= said
                    continue
                outcome.state, outcome.error = kind, said
                break
        except (EOFError, OSError):
            self._process.join(5)
            outcome.state = "died"
            outcome.error = f"its process ended, exit code {self._process.exitcode}"
        outcome.seconds = monotonic() - started
        return outcome

    def end(self) -> None:
        """Have the process end, which waits for another part."""
        self._ours.close()
        self._process.join(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._ours.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, settings: Settings) -> None:
    """Run parts until nobody asks for more."""
    place: Place | None = None
    while True:
        try:
            part, seconds = connection.recv()
        except EOFError:
            return

        def tell(**figures: Any) -> None:
            connection.send(("figures", figures))

        try:
            place = place or Place(settings)
            place.ends = monotonic() + seconds
            part.load()(place, tell)
        except Exception as error:
            connection.send(("failed", told(error)))
        else:
            connection.send(("done", None))
        free_memory()
