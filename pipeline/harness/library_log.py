"""What lm-eval says while it runs: kept off the console, and told once for each kind."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final

_log = logging.getLogger(__name__)

_LIBRARIES: Final = ("lm_eval", "datasets")
_SHOWN: Final = 300
_Kind = tuple[str, int]
"""Logger and line of a message: those of one kind differ in numbers and documents only."""


class LibraryLog(logging.Handler):
    """Counts warnings by kind.

    lm-eval warns of each request that it shortens, and of each document whose answer is not among
    its choices: too much to print, and too much to lose.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts: Counter[_Kind] = Counter()
        self._firsts: dict[_Kind, str] = {}
        self._told: set[_Kind] = set()
        self._error: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message in."""
        kind = (record.name, record.lineno)
        text = " ".join(record.getMessage().split())
        self._counts[kind] += 1
        self._firsts.setdefault(kind, text)
        if record.levelno >= logging.ERROR:
            self._error = text

    def forget(self) -> None:
        """Leave out what was said so far, such as how lm-eval would rather be called."""
        self._counts.clear()
        self._firsts.clear()
        self._error = None

    def tell(self) -> None:
        """Warn of each kind that came since `forget` and was not told yet."""
        for kind, count in self._counts.items():
            if kind not in self._told:
                first = self._firsts[kind]
                shown = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}…"
                more = f" (and {count - 1:,} more of the kind)" if count > 1 else ""
                _log.warning(f"lm-eval: {shown}{more}")
        self._told |= self._counts.keys()

    @property
    def last_error(self) -> str | None:
        """The last message of an error since `forget`."""
        return self._error


@contextlib.contextmanager
def library_log() -> Iterator[LibraryLog]:
    """Take what lm-eval, and what reads documents for it, log until the context is left."""
    taken = LibraryLog()
    with contextlib.ExitStack() as restored:
        for name in _LIBRARIES:
            logger = logging.getLogger(name)
            restored.callback(logger.setLevel, logger.level)
            restored.callback(setattr, logger, "propagate", logger.propagate)
            restored.callback(setattr, logger, "handlers", logger.handlers)
            logger.setLevel(logging.WARNING)
            logger.propagate, logger.handlers = False, [taken]
        yield taken
