"""A tiny base on disk, a head for it, and tasks."""

from pathlib import Path

import pytest

from tests.support.heads import write_head
from tests.support.lm_eval_tasks import write_tasks
from tests.support.tiny import make_cache, save_base, tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_base(tiny_base(), tmp_path_factory.mktemp("harness") / "base"))


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("harness")
    return write_head(folder / "head", make_cache(folder, pairs=8))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness") / "tasks")
