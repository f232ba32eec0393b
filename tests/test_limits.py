"""No test waits, or looks at a clock, but through `tests/support/running/limits.py`."""

import ast
from pathlib import Path
from typing import Final

import pytest

from tests.support.running import limits
from tests.support.running.limits import Clock, wait_until

TESTS: Final = Path(__file__).parent
HERE: Final = TESTS / "support" / "running" / "limits.py"
CLOCKS: Final = {"monotonic", "perf_counter", "process_time", "thread_time", "time", "time_ns"}
WAITING: Final = {
    *("acquire", "alarm", "communicate", "create_connection", "join", "result"),
    *("set_default_timeout", "settimeout", "wait", "wait_for", "wait_until"),
}
"""Methods and functions whose numbers are limits."""


def is_number(node: ast.expr) -> bool:
    """Tell whether an expression is a number, other than 0, that takes nothing from elsewhere."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return bool(value) and value is not True
        case ast.BinOp(left=left, right=right):
            return is_number(left) and is_number(right)
        case ast.IfExp(body=first, orelse=second):
            return is_number(first) or is_number(second)
    return False


def faults(text: str) -> list[int]:
    """Return the lines of a program that look at a clock, or have a limit of their own."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            wrong = any(alias.name in CLOCKS for alias in node.names)
        elif isinstance(node, ast.Attribute):
            wrong = ast.unparse(node) in {f"time.{name}" for name in CLOCKS}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = " ".join(map(ast.unparse, targets)).lower()
            wrong = (
                any(word in names for word in ("patience", "timeout", "deadline"))
                and node.value is not None
                and is_number(node.value)
            )
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            limited = [word.value for word in node.keywords if "timeout" in (word.arg or "")]
            if name in WAITING:
                limited += node.args
            wrong = any(map(is_number, limited))
        else:
            continue
        if wrong:
            found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_limits_are_at_one_place(path: Path) -> None:
    assert path == HERE or faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "run(command, timeout=120)",
        "Client(timeout=60 if busy else None)",
        "page.set_default_timeout(20_000)",
        "barrier.wait(30)",
        "wait_until(lambda: done, 5)",
        "create_connection(('127.0.0.1', port), 10)",
        "began = time.monotonic()",
        "from time import perf_counter",
        "PATIENCE: Final = 60.0",
        "PATIENCE = 10 * 60",
    ],
)
def test_limits_elsewhere_are_found(line: str) -> None:
    assert faults(f"'''A test.'''\n{line}\n") == [2]


@pytest.mark.parametrize(
    "line",
    [
        "run(command, timeout=PROCESS)",
        "worker.join(0.0)",
        "thread.join()",
        "wait_until(lambda: len(found) == 3, PROCESS)",
        "', '.join(str(one + 1) for one in found)",
        "page.set_default_timeout(1000 * EVENT)",
        "time.sleep(0.01)",
    ],
)
def test_what_is_no_limit_is_allowed(line: str) -> None:
    assert faults(line) == []


def test_waiting_ends_when_it_holds_or_in_the_end() -> None:
    looks = iter([False, False, True])
    wait_until(lambda: next(looks))
    assert next(looks, None) is None
    with pytest.raises(TimeoutError, match="did not come to hold within 0 s"):
        wait_until(lambda: False, 0.0)


def test_a_clock_moves_by_what_is_slept() -> None:
    clock = Clock()
    seen: list[float] = []
    clock.sleeping = lambda seconds: seen.append(clock.now + seconds)
    clock.sleep(2.0)
    clock.sleep(0.5)
    assert (clock.monotonic(), seen) == (2.5, [2.0, 2.5])


def test_limits_are_generous() -> None:
    assert limits.EVENT < limits.PROCESS < limits.SCRIPT < limits.NEVER
