"""Everything here needs vLLM; `make test-vllm` installs it in an environment of its own."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine.jobs import Run, run_program
from tests.support.engine.world import write_world
from tests.support.running.once import made_once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = find_spec("vllm") is None
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and heads of all kinds."""
    return made_once(tmp_path_factory, "vllm-world", write_world)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one of the programs for a job, in a process of its own, and returns its result."""
    kept = os.environ.get("VLLM_CACHE_ROOT") or str(tmp_path_factory.mktemp("vllm-cache"))

    def ran(program: str, job: Any, **environment: str) -> Any:
        folder = tmp_path_factory.mktemp("job")
        return run_program(program, job, folder, {"VLLM_CACHE_ROOT": kept, **environment})

    return ran
