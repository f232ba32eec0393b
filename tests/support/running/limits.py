"""How long tests wait for what must come. It is said here and nowhere else.

A limit ends a hang, and nothing more: each is at least ten times what is usual on two cores, and no
test tells anything by how long something took. What a product's own limit does is tested with a
clock that the test moves.
"""

import os
import time
from collections.abc import Callable
from typing import Final

_STRETCH: Final = float(os.environ.get("MAV_TEST_PATIENCE", "1"))

EVENT: Final = 300 * _STRETCH
"""Seconds for a thread, a server or a process that runs already to do one thing."""
PROCESS: Final = 900 * _STRETCH
"""Seconds for a process to start, import torch and do its work."""
SCRIPT: Final = 1800 * _STRETCH
"""Seconds for a block of a page of the documentation: several commands."""
POLL: Final = 1.0
"""Seconds between two looks at whether a process is still needed."""
NEVER: Final = 1_000_000.0
"""Seconds in place of a product's limit that must not be what ends a test."""


def wait_until(condition: Callable[[], object], seconds: float = EVENT) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: It did not come to hold.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come to hold within {seconds:.0f} s")
        time.sleep(0.01)


class Clock:
    """In place of the module `time`, for code that waits: sleeping only moves the clock.

    Attributes:
        now: What the clock shows, in seconds.
        sleeping: Called with the seconds of each sleep, before they have passed.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeping: Callable[[float], object] = lambda _: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeping(seconds)
        self.now += seconds
