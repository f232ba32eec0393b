"""Who may use a base and its head: one at a time, and nobody amid a loan of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mav.cache_schema.errors import UsageError


class Lending:
    """Turns at something that one thread can use at a time, and loans of it."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.RLock()
        self._lent_to: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until nobody else has it, and keep it while the context is open.

        Raises:
            UsageError: It is lent to this very thread.
        """
        self.require_not_lent()
        with self._one_at_a_time:
            yield

    @contextmanager
    def loan(self) -> Iterator[None]:
        """Take a turn during which this thread can take no other, which would end what is lent.

        Raises:
            UsageError: It is lent to this thread already.
        """
        with self.turn():
            self._lent_to = threading.get_ident()
            try:
                yield
            finally:
                self._lent_to = None

    def require_not_lent(self) -> None:
        """Refuse a thread that has borrowed it: it would wait for itself, or end the loan.

        Raises:
            UsageError: It has.
        """
        if self._lent_to == threading.get_ident():
            raise UsageError(
                "Base and head are lent out by `steering` or `exclusively`; use what that yields, "
                "or leave it first"
            )
