"""A plugin: with `--warm`, the processes that run tests are forks of one that imported everything.

Each would import torch and transformers by itself, for as long as a tenth of all tests takes. The
process that they are forked from runs the commands of the tests too; see `warm_python`.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.running.warm_python import start

WARM = pytest.StashKey[Path]()
"""The folder of the programs, in the process that starts the others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    told = "fork the processes of pytest-xdist from one that has imported torch and transformers"
    parser.addoption("--warm", action="store_true", help=told)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Start the process, whose `python` takes the place of the interpreter's."""
    if config.getoption("warm"):
        folder = Path(tempfile.mkdtemp(prefix="mav-warm-"))
        config.stash[WARM] = folder
        start(folder, os.getpid())
        for spec in specs:
            spec.python = str(folder / "python")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process where the programs are."""
    if folder := node.config.stash.get(WARM, None):
        node.workerinput["warm"] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the programs; the process ends with this one."""
    if folder := config.stash.get(WARM, None):
        shutil.rmtree(folder)


def told(config: pytest.Config) -> Path | None:
    """Return the folder of the programs, in a process that was forked so."""
    given = getattr(config, "workerinput", {}).get("warm")
    return given and Path(given)
