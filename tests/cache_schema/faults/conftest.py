"""What the tests of faults share: the process that forks, and the cache of an undisturbed run."""

import shutil
import tempfile
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
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder, in memory where there is such a place: thousands of caches come and go in it."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="mav-", dir=memory))
    yield folder
    shutil.rmtree(folder)


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
