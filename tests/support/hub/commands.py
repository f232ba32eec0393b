"""Runs `mav` in a process of its own, with what the hub's clients find in their environment.

`python -m tests.support.hub.commands` reads groups of argument lists and writes what each did, as
JSON. The clients read their environment once, so a process is for one home and one endpoint. Groups
run side by side in forks of it, which share the seconds that it takes to import them. The
commands of a group run in turn. What the clients wait before they try again is cut to a hundredth.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any, Final

from tests.support.running.limits import SCRIPT
from tests.support.running.warm_python import import_all

ROOT: Final = Path(__file__).parents[3]
SIDE_BY_SIDE: Final = 8


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command did."""

    args: list[str]
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that tells what is wrong."""
        told = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(told) == 1, self.err
        assert self.err.splitlines()[-1] == told[0], self.err
        assert "Traceback" not in self.err
        return told[0].removeprefix("Error: ")


def run(
    python: Path,
    groups: Sequence[Sequence[Sequence[object]]],
    folder: Path,
    environment: Mapping[str, str],
    said: str = "",
) -> list[list[Ran]]:
    """Run groups of commands, each a list of arguments for `mav`.

    Args:
        python: One that has not imported the clients.
        groups: The groups.
        folder: Where to run them.
        environment: What they find in their environment besides.
        said: Standard input of each command.

    Returns:
        What each command did.
    """
    asked = [[[str(word) for word in command] for command in group] for group in groups]
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    done = subprocess.run(
        [python, "-m", "tests.support.hub.commands"],
        input=json.dumps([asked, said]),
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=SCRIPT,
    )
    assert done.returncode == 0, done.stderr
    return [[Ran(**one) for one in group] for group in json.loads(done.stdout)]


def _run_in_turn(commands: list[list[str]], said: str) -> list[dict[str, Any]]:
    from click.testing import CliRunner

    from mav.cli import main

    done = []
    for args in commands:
        result = CliRunner().invoke(main, args, input=said)
        found = result.exception
        trace = "" if result.exc_info is None else "".join(format_exception(*result.exc_info))
        crashed = found is not None and not isinstance(found, SystemExit)
        done.append(
            {
                "args": args,
                "code": result.exit_code,
                "out": result.stdout,
                "err": result.stderr + (trace if crashed else ""),
            }
        )
    return done


def _main() -> None:
    import_all()
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(float(seconds) / 100)
    groups, said = json.load(sys.stdin)
    if len(groups) == 1:
        done = [_run_in_turn(groups[0], said)]
    else:
        with multiprocessing.get_context("fork").Pool(min(len(groups), SIDE_BY_SIDE)) as pool:
            done = pool.starmap(_run_in_turn, [(group, said) for group in groups], chunksize=1)
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    _main()
