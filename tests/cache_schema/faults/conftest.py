"""What the tests of faults share: the process that forks, and the cache of an undisturbed run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache_schema.faults.cache_program import Whole, examine, extract, prepare
from tests.cache_schema.faults.fork_server import ForkServer
from tests.support.written_caches import quick_disk


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer(prepare)
    yield server
    server.close()


@pytest.fixture
def place(memory_path: Path) -> Path:
    """Where thousands of caches come and go."""
    return memory_path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The cache of a run that nothing happened to."""
    location = tmp_path_factory.mktemp("undisturbed") / "cache"
    with quick_disk():
        extract(location)
    found = examine(location)
    assert found.sound
    assert not found.unknown
    return found
