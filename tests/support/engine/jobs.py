"""Programs that run in processes of their own, with vLLM in one and MAV alone in the other."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.running.limits import PROCESS

ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
Run = Callable[..., Any]


def run_program(program: str, job: Any, folder: Path, environment: dict[str, str]) -> Any:
    """Run a program of `tests.support` for a job; return its result.

    Args:
        program: Its name.
        job: What it is told, JSON.
        folder: Where job and result are written.
        environment: What it finds there beside `ENVIRONMENT`.
    """
    told, written = folder / "job.json", folder / "result.json"
    told.write_text(json.dumps(job))
    ended = subprocess.run(
        [sys.executable, "-W", "default", "-m", f"tests.support.{program}", told, written],
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=PROCESS,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    return json.loads(written.read_text())


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
