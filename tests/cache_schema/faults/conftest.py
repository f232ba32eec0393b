"""What the tests of faults share: the process that forks, and the cache of an undisturbed run."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.caches.written_caches import quick_disk, read_all
from tests.support.faults.cache_program import Whole, examine, extract, prepare
from tests.support.faults.damage import Caches, make_whole
from tests.support.faults.fork_server import ForkServer


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


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of the same sizes and other values; read only."""
    folder = tmp_path_factory.mktemp("damage")
    with quick_disk():
        make_whole(folder / "original")
        make_whole(folder / "other", attempt=1)
    return folder / "original", folder / "other"


@pytest.fixture
def caches(originals: tuple[Path, Path], place: Path) -> Caches:
    """A copy of the first to damage, beside both."""
    original, other = originals
    return Caches(
        damaged=shutil.copytree(original, place / "cache"),
        original=original,
        values=read_all(original),
        other=other,
    )
