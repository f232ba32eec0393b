"""Progress bars: rate and time left on a terminal, occasional lines in a log file."""

import logging
import os
import sys
from typing import Any, Final

from tqdm import tqdm

_LOG_SECONDS: Final = 15.0


def between_bars() -> Any:
    """Return a context in which a line may be printed without running into a bar."""
    return tqdm.external_write_mode(file=sys.stderr)


def progress_bar(total: int | None, what: str, unit: str, *, done: int = 0) -> Any:
    """Return a tqdm bar on standard error, hidden where the logger `mav` is set above INFO.

    Args:
        total: Amount of work, if known.
        what: What is being done.
        unit: Unit of the amount.
        done: Amount already done.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=done,
        file=sys.stderr,
        unit_scale=unit in ("tok", "B"),
        # Work is sorted by length in places, so a rate over the last moments would mislead.
        smoothing=0.02,
        mininterval=0.2 if terminal else _LOG_SECONDS,
        ascii=None if terminal else True,
        leave=True,
        # Of processes launched together, only the first shows progress, of its own share.
        disable=os.environ.get("RANK", "0") != "0" or logging.getLogger("mav").level > logging.INFO,
    )
