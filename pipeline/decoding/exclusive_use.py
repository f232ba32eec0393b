"""A lock on a base and its head: one thread at a time, and no re-entry into `steering()`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mav.cache_schema.errors import UsageError


class ExclusiveUse:
    """A lock that also refuses a thread which has handed the locked object to its caller."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held_by_caller_in: int | None = None

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold the lock while the context is open.

        Raises:
            UsageError: This thread is inside `hand_out`.
        """
        self.require_not_handed_out()
        with self._lock:
            yield

    @contextmanager
    def hand_out(self) -> Iterator[None]:
        """Hold the lock while the caller's own code uses base and head.

        That code may not acquire the lock again: it would change what it is using.

        Raises:
            UsageError: This thread is inside `hand_out` already.
        """
        with self.acquire():
            self._held_by_caller_in = threading.get_ident()
            try:
                yield
            finally:
                self._held_by_caller_in = None

    def require_not_handed_out(self) -> None:
        """Refuse the thread that is inside `hand_out`.

        Raises:
            UsageError: It is this one.
        """
        if self._held_by_caller_in == threading.get_ident():
            raise UsageError(
                "Base and head are in use by `steering` or `exclusive` in this thread; use what "
                "that yields, or leave it first"
            )
