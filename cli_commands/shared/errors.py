"""Runs every command; its errors become one message and an exit code."""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click

from mav.cli_commands.shared.config import config_option
from mav.cli_commands.shared.flags import with_flags
from mav.cli_commands.shared.logging import log_to_stderr, verbosity_options
from mav.cli_commands.shared.options import OneOnly
from mav.cli_commands.shared.places import complete_files
from mav.cli_commands.shared.sections import write_options


class ReportsErrors(click.Command):
    """A command that turns user errors into one message and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; see `click.Command.parse_args`.

        Raises:
            click.UsageError: An option that takes one value is repeated.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            if isinstance(option, OneOnly) and times > 1 and not ctx.resilient_parsing:
                raise click.UsageError(
                    f"{option.opts[0]} is given {times} times, but takes one value", ctx
                )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under headings; see `sections`."""
        write_options(self, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see `click.Command.invoke`."""
        try:
            with _terminable(), log_to_stderr(ctx):
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            ctx.exit(_tell_of_stop(ctx, stop))
        except BrokenPipeError:
            raise  # click exits quietly when the reader has closed the pipe
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = f". The disk is full; free some space. {_goes_on(ctx) or ''}" if full else ""
            raise _Failure(
                f"{error.filename or 'output'}: {error.strerror or error}{remedy}".rstrip(), 1
            ) from error
        except Exception as error:
            from mav.cache_schema.errors import MAVError

            if isinstance(error, MAVError):
                raise _Failure(with_flags(ctx, str(error)), error.exit_code) from error
            raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does."""
    from mav.pipeline.runtime.interruption import Terminated

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # it is already ending
        raise Terminated

    # Only the main thread may set signals; handlers that are already set are kept.
    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ours = free and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell_of_stop(ctx: click.Context, stop: KeyboardInterrupt) -> int:
    """Print what an interrupted command has kept; return the exit code."""
    from mav.pipeline.runtime.interruption import Interrupted, Terminated

    kept = with_flags(ctx, str(stop)) if isinstance(stop, Interrupted) else _goes_on(ctx)
    cause = stop.__cause__ if isinstance(stop, Interrupted) else stop
    code = 128 + (signal.SIGTERM if isinstance(cause, Terminated) else signal.SIGINT)
    # Of processes launched together, only one prints.
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"\nInterrupted.{f' {kept}' if kept else ''}", err=True)
    if isinstance(stop, Interrupted) and stop.at_once:
        # Do not wait for threads that still write: incomplete writes are ignored.
        sys.stderr.flush()
        os._exit(code)
    return code


def _goes_on(ctx: click.Context) -> str | None:
    """Return how to resume an interrupted command, or None."""
    if ctx.info_name == "train":
        return "The same command with --resume continues from the last checkpoint."
    if ctx.info_name in ("extract", "demo", "compare", "sample") or (
        ctx.params.get("prompts_file") and ctx.params.get("output")
    ):
        return "The same command resumes where it stopped; what was written is kept."
    return None


class _Failure(click.ClickException):
    """A message and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


def print_result(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print a result for programs or for people."""
    # Of processes launched together, only one prints.
    if os.environ.get("RANK", "0") == "0":
        click.echo(json.dumps(value, indent=1) if as_json else text)


def command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command of a function, named before `_command`.

    Args:
        example: Lines that show its use, at the end of its help.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        made = click.command(
            function.__name__.removesuffix("_command").replace("_", "-"),
            cls=ReportsErrors,
            epilog="\b\nExample:\n" + example.strip("\n"),
        )(function)
        made.params += [config_option(), *verbosity_options()]
        complete_files(made)
        return made

    return decorate
