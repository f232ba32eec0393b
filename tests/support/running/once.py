"""What is made once for all processes that the tests run in."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def is_one_of_several() -> bool:
    """Whether this process runs some of the tests only, as pytest-xdist has it."""
    return "PYTEST_XDIST_WORKER" in os.environ


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process to ask makes, while the others wait; read only.

    Args:
        factory: Names the folder of this run's temporary files.
        name: What the folder is called.
        make: Fills it; another process tries again where it fails.
    """
    root = factory.getbasetemp()
    if is_one_of_several():
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
