"""What every test is run with."""

import os

# No test may ask the hub for anything, nor be slowed by threads fighting over two cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.caches.written_caches import quick_disk, write
from tests.support.profiles import load_profile
from tests.support.running.logs import logged_messages

# What runs note of this machine is the tests' own.
_HOME = tempfile.mkdtemp(prefix="mav-home-")
os.environ["MAV_CACHE_HOME"] = _HOME

load_profile()

pytest_plugins = ["tests.support.running.warm_workers"]

SLOW_FIRST = ("docs/", "benchmarks/", "test_package", "base/test_hub", "cli/test_interruption")
"""Files whose few tests take long; begun last, one process would end long after the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files of few and slow tests first; others as they were collected."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(SLOW_FIRST))


def pytest_collection_finish() -> None:
    """Leave what imports made out of later searches for garbage, of which tests ask many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Remove what runs noted."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the logger `mav` gets during a test, from level INFO on."""
    with logged_messages() as logged:
        yield logged


@pytest.fixture(scope="module")
def unflushed_disk() -> Iterator[None]:
    """Local caches are written without forcing anything to the disk, for the tests of a file."""
    with quick_disk():
        yield


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete factored float32 cache of a tiny Llama, 40 pairs in several blocks; read only."""
    from tests.support.models.tiny import make_cache  # torch, which the format's tests do without

    return make_cache(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def warm_programs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs `mav` and `python` that start in a moment; for all processes."""
    from tests.support.running.once import is_one_of_several, made_once
    from tests.support.running.warm_python import start
    from tests.support.running.warm_workers import told

    if (programs := told(pytestconfig)) is not None:
        return programs
    ends_with = os.getppid() if is_one_of_several() else os.getpid()
    return made_once(tmp_path_factory, "warm", lambda folder: start(folder, ends_with))


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder, in memory where there is such a place: thousands of small files come and go."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="mav-", dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bfloat16 factored cache of random bits, with a bias, four blocks; read only."""
    root = tmp_path_factory.mktemp("original") / "cache"
    with quick_disk():
        write(root, has_bias=True)
    return root


@pytest.fixture
def cache(original: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(original, tmp_path / "cache")
