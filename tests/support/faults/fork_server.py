"""A process with one thread, and all modules loaded, that forks a child for every call.

A child that may be killed must start in milliseconds and must not inherit threads or the locks they
hold, as it would from a test process with torch loaded.
"""

import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

_P = ParamSpec("_P")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a call ended.

    Attributes:
        signal: What killed the child, or 0.
        value: What the function returned.
        raised: Name of the class of what it raised, and of the classes that one derives from.
        trace: The traceback, as text.
    """

    signal: int = 0
    value: Any = None
    raised: tuple[str, ...] = ()
    trace: str = ""


class ForkServer:
    """The process, as seen from a test.

    Args:
        prepare: Called in it, once, before it forks; must leave no thread behind.
    """

    def __init__(self, prepare: Callable[[], None]) -> None:
        code = f"""
import {__name__} as server, {prepare.__module__} as program
program.{prepare.__name__}()
server.serve()
"""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, function: Callable[_P, Any], *args: _P.args, **options: _P.kwargs) -> Ended:
        """Call a function in a child of its own and tell how that ended."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        pickle.dump((function, args, options), pipes[0])
        pipes[0].flush()
        ended: Ended = pickle.load(pipes[1])
        return ended

    def value(self, function: Callable[_P, Any], *args: _P.args, **options: _P.kwargs) -> Any:
        """Call a function in a child of its own and return what it returns."""
        ended = self.run(function, *args, **options)
        assert not ended.signal, f"killed by signal {ended.signal}"
        assert not ended.raised, ended.trace
        return ended.value

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def fork(function: Callable[[], Any]) -> int:
    """Call a function in a child, which then ends with status 0; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def serve() -> None:
    """Fork until there is no more input."""
    assert threading.active_count() == 1
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what children print is no answer
        while True:
            try:
                function, args, options = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(_run_in_child(function, args, options), answers)
            answers.flush()


def _run_in_child(function: Callable[..., Any], args: Any, options: Any) -> Ended:
    inward, outward = os.pipe()

    def call() -> None:
        try:
            ended = Ended(value=function(*args, **options))
        except BaseException as error:
            names = tuple(cls.__name__ for cls in type(error).__mro__)
            ended = Ended(raised=names, trace=traceback.format_exc())
        with os.fdopen(outward, "wb") as file:
            pickle.dump(ended, file)

    child = fork(call)
    os.close(outward)
    with os.fdopen(inward, "rb") as file:
        told = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        return Ended(signal=-code)
    found: Ended = pickle.loads(told)
    return found
