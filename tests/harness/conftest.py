"""A tiny base on disk, a head for it, and tasks."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.running.lm_eval_tasks import write_tasks
from tests.support.steering.heads import write_head


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


@pytest.fixture
def quick_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long: reading lm-eval's thousands of tasks, asking for this machine."""
    from lm_eval.tasks import TaskManager

    init = TaskManager.__init__

    def without_defaults(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "include_defaults": False})

    monkeypatch.setattr(TaskManager, "__init__", without_defaults)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: None)
