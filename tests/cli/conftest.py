"""What the tests of the commands share."""

from pathlib import Path

import pytest

from tests.support.running.refusals import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, data, caches and a head that are all well; read only."""
    return World.made(tmp_path_factory.mktemp("world"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where a command that is refused must write nothing."""
    return tmp_path / "out" / "put"
