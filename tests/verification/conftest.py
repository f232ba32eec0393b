"""What the tests of `mav verify` share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.caches.verification import PAIRS, World
from tests.support.caches.written_caches import quick_disk
from tests.support.models.tiny import save_base, tiny_base, write_rows
from tests.support.running.commands import done


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """No option of the command makes blocks so small that a tiny cache has several."""
    with pytest.MonkeyPatch.context() as patch, quick_disk():
        patch.setattr("mav.cache_schema.plan.MOST_BLOCK_TOKENS", 256)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(
        base=save_base(tiny_base(), folder / "base"),
        data=write_rows(folder / "pairs.jsonl", PAIRS),
        cache=folder / "cache",
    )
    done(*made.extract(made.cache))
    return made


@pytest.fixture
def cache(world: World, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(world.cache, tmp_path / "cache")
