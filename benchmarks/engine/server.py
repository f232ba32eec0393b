"""`mav serve` as a configuration of `benchmarks.engine`: a process of its own, asked over HTTP."""

import atexit
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import psutil

from mav.cache_schema.errors import MAVError

_START: Final = 900.0
"""Seconds in which it has to answer first."""
_ANSWER: Final = 3600.0


def with_server(
    job: dict[str, Any], prompts: Sequence[list[int]]
) -> tuple[Callable[[float | None], int], Callable[[], float]]:
    """Start a server; it ends with this process.

    Args:
        job: What is measured.
        prompts: Tokens of all prompts, which are asked at once.

    Returns:
        What answers all prompts at an alpha and says how many tokens were written, and what says
        how many seconds of the processor the server has used.

    Raises:
        MAVError: It ended before it answered.
    """
    port = _free_port()
    words = ["--head", job["head"], "--base-model", job["model"], "--dtype", job["dtype"]]
    words += ["--port", str(port), "--max-rows", str(job["requests"])]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - kept as long as the server runs
    server = subprocess.Popen(
        [sys.executable, "-m", "mav", "serve", *words], stdout=log, stderr=subprocess.STDOUT
    )
    atexit.register(server.terminate)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + _START
    while not _answers(f"{url}/health"):
        if server.poll() is not None or time.monotonic() > end:
            log.seek(0)
            raise MAVError(f"`mav serve` did not start:\n{log.read()[-2000:].decode()}")
        time.sleep(0.2)
    process = psutil.Process(server.pid)

    def ask(prompt: list[int], alpha: float | None) -> int:
        fields = {"prompt": prompt, "max_tokens": job["new_tokens"], "alpha": alpha or 0.0}
        request = urllib.request.Request(  # noqa: S310
            f"{url}/v1/completions",
            json.dumps({**fields, "temperature": 0}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_ANSWER) as answer:  # noqa: S310
            written: int = json.load(answer)["usage"]["completion_tokens"]
            return written

    def answer(alpha: float | None) -> int:
        with ThreadPoolExecutor(len(prompts)) as threads:
            return sum(threads.map(lambda prompt: ask(prompt, alpha), prompts))

    def used() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return answer, used


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
