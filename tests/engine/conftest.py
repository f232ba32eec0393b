"""A tiny base and heads of all kinds, checked without vLLM."""

from pathlib import Path

import pytest

from tests.support.engine.world import write_world
from tests.support.running.once import made_once


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "engine-world", write_world)
