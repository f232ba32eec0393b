"""What benchmarks with a file of results share at their command line."""

import argparse
import sys
from collections.abc import Callable

from benchmarks.synthetic import log_to_stderr
from mav.cache_schema.errors import MAVError, UsageError


def run_command(run: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run with the arguments of this process; an error is one line, and the exit code its own."""
    asked = parser.parse_args()
    log_to_stderr()
    try:
        run(asked)
    except MAVError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def read_seeds(text: str) -> list[int]:
    """Read `0,1,2`.

    Raises:
        UsageError: It has another form.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds: got {text!r}, expected numbers such as 0,1,2") from None
