"""Everything here needs vLLM; `make test-vllm` installs it in an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.engine_world import write_world
from tests.support.limits import PROCESS
from tests.support.once import made_once

HAS_VLLM: Final = find_spec("vllm") is not None
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
Run = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not HAS_VLLM:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and heads of all kinds."""
    return made_once(tmp_path_factory, "vllm-world", write_world)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one of the programs for a job, in a process of its own, and returns its result."""
    cache = tmp_path_factory.mktemp("vllm-cache")

    def ran(program: str, job: Any, **environment: str) -> Any:
        folder = tmp_path_factory.mktemp("job")
        told, written = folder / "job.json", folder / "result.json"
        told.write_text(json.dumps(job))
        ended = subprocess.run(
            [sys.executable, "-W", "default", "-m", f"tests.support.{program}", told, written],
            env={"VLLM_CACHE_ROOT": str(cache), **os.environ, **ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            timeout=PROCESS,
        )
        assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
        return json.loads(written.read_text())

    return ran
