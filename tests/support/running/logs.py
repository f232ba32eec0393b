"""What the logger `mav` or one below it gets, for tests that look at it."""

import contextlib
import logging
from collections.abc import Iterator


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def logged_messages(name: str = "mav") -> Iterator[list[str]]:
    """Yield a list to which each message of a logger of level INFO or above is added.

    Unlike caplog, it can be used in fixtures of any scope, and takes no part in propagation.
    """
    logger, handler = logging.getLogger(name), _Messages()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
