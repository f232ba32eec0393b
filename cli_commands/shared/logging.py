"""Logging of commands to standard error, as detailed as --quiet and --verbose ask for."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

import click

from mav.cli_commands.shared.flags import with_flags

_LEVEL: Final = "mav.log_level"


def _set_level(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Store the level an option asks for.

    Raises:
        click.UsageError: The other option is given too.
    """
    if not value:
        return
    level = logging.WARNING if param.name == "quiet" else logging.DEBUG
    if ctx.meta.setdefault(_LEVEL, level) != level:
        raise click.UsageError("give either --quiet or --verbose", ctx)


def verbosity_options() -> list[click.Option]:
    """Return --quiet and --verbose, which every command takes."""
    shared: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": _set_level}
    return [
        click.Option(["--quiet"], help="Print warnings and errors only, no progress.", **shared),
        click.Option(
            ["--verbose"], help="Print details too, each after its logger's name.", **shared
        ),
    ]


class _StderrHandler(logging.Handler):
    """Prints messages on the current standard error, without breaking progress bars.

    Args:
        ctx: Context of the command whose options messages may name.
    """

    def __init__(self, ctx: click.Context) -> None:
        super().__init__()
        self._ctx = ctx

    def emit(self, record: logging.LogRecord) -> None:
        from mav.pipeline.runtime.progress import between_bars

        # Errors are raised, so that a closed pipe ends the command.
        with between_bars():
            click.echo(with_flags(self._ctx, self.format(record)), err=True)


@contextlib.contextmanager
def log_to_stderr(ctx: click.Context) -> Iterator[None]:
    """Print messages of the logger `mav` while the context is open.

    Args:
        ctx: Context of a command with `verbosity_options`.
    """
    logger = logging.getLogger("mav")
    before = logger.level, logger.propagate
    level = ctx.meta.get(_LEVEL, logging.INFO)
    handler = _StderrHandler(ctx)
    text = "%(name)s: %(message)s" if level == logging.DEBUG else "%(message)s"
    handler.setFormatter(logging.Formatter(text))
    logger.addHandler(handler)
    logger.setLevel(level)
    # A library that configures the root logger would print each line again.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _StdoutHandler(logging.Handler):
    """Prints each message as a line of the current standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        # Where nobody reads the lines any longer, requests are answered all the same.
        with contextlib.suppress(OSError):
            click.echo(record.getMessage())


@contextlib.contextmanager
def lines_to_stdout(name: str) -> Iterator[None]:
    """Print messages of a logger below `mav` on standard output alone while the context is open."""
    logger, handler = logging.getLogger(name), _StdoutHandler()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
