"""A Python that has imported everything, and forks to run `mav`, or a script, in a moment.

Tests run dozens of commands in processes of their own, each of which would import torch for
seconds. So this imports once and listens on a socket; the programs `mav` and `python` that `start`
makes hand their arguments, folder, environment and open files over, and wait. To a shell they are
programs like any other: pipes, redirections, signals and exit codes work. One such process serves
all processes that the tests run in, and ends with the one that started those.

The hub's clients read their environment when they are imported. So there is a third program,
`early-python`, for what runs in another environment: all is imported there but those clients and
what needs them.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import psutil

from tests.support.running.limits import POLL, PROCESS, wait_until

_ROOT: Final = Path(__file__).parents[3]
_EARLY: Final = (
    "click",
    "fastapi",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "openai",
    "pandas",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "uvicorn.config",
    "zarr",
)
"""What commands and tests import of others that needs no client of the hub."""
_IMPORTED: Final = (
    "accelerate.tracking",
    "datasets",
    "hypothesis",
    "mav",
    "mav.cli",
    "mav.pipeline.decoding.files.batch_file",
    "mav.pipeline.decoding.chat",
    "mav.pipeline.demo.run",
    "mav.pipeline.reporting.html",
    "mav.pipeline.extraction.dry_run",
    "mav.pipeline.serving.app",
    "mav.pipeline.serving.http_server",
    "mav.pipeline.serving.worker",
    "mav.pipeline.demo.switching",
    "mav.pipeline.verification.verify",
    "transformers.models.llama.modeling_llama",
    "transformers.quantizers.auto",
)
"""What else they import."""

_CLIENT: Final = """\
#!{python} -SE
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as warm:
    warm.connect({socket!r})
    asked = [{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]
    asked = json.dumps(asked).encode()
    socket.send_fds(warm, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    warm.sendall(asked)
    child = int.from_bytes(warm.recv(8), "big")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    code = warm.recv(1)
sys.exit(code[0] if code else 70)
"""


def start(folder: Path, while_alive: int) -> None:
    """Start the process.

    Args:
        folder: Gets its programs, and its log.
        while_alive: Number of the process that it serves and ends with.
    """
    address, early, log = folder / "socket", folder / "early-socket", folder / "log"
    for name, program, asked in (
        ("mav", "mav", address),
        ("python", "python", address),
        ("early-python", "python", early),
    ):
        text = _CLIENT.format(python=sys.executable, socket=str(asked), program=program)
        write_program(folder / name, text)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(address), str(early), str(while_alive)],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own, which ends with all that was forked from it.
            start_new_session=True,
        )
    wait_until(lambda: process.poll() is not None or address.exists(), PROCESS)
    if (code := process.poll()) is not None:
        said = log.read_text(errors="replace")
        raise RuntimeError(f"no Python to run commands, exit code {code}:\n{said}")
    # It outlives whoever happened to need it first.
    process.returncode = 0


def write_program(path: Path, text: str) -> None:
    """Write a file that can be run."""
    path.write_text(text, encoding="utf-8")
    path.chmod(stat.S_IRWXU)


def import_all() -> None:
    """Import what commands import when they run."""
    for name in _EARLY + _IMPORTED:
        importlib.import_module(name)


def run(program: str, args: list[str], defaults: Mapping[str, Mapping[str, object]]) -> int:
    """Run a program in this process; return its exit code.

    Args:
        program: `mav`, or `python` with a script or a module.
        args: What follows it.
        defaults: Command of `mav` -> option -> value where none is given.
    """
    from mav import cli

    # As launchers ask for; what is printed is flushed at the end in any case.
    if program == "python" and args[0] == "-u":
        args = args[1:]
    try:
        if program == "mav":
            cli.main(args, prog_name="mav", default_map=defaults)
        elif args[0] == "-c":
            sys.argv = ["-c", *args[2:]]
            exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"})
        elif args[0] == "-m":
            sys.argv = args[1:]
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = args
            sys.path[0] = str(Path(args[0]).parent)
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _child(connection: socket.socket) -> None:
    """Run what a connection asks for; does not return."""
    end, own = os._exit, os.getpid()

    def answer_and_end(status: int) -> NoReturn:
        if os.getpid() == own:
            connection.sendall(bytes([status]))
        end(status)

    # Some commands end so of themselves, and so do processes that they fork.
    os._exit = answer_and_end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raw, files, _, _ = socket.recv_fds(connection, 8, 3)
    connection.sendall(os.getpid().to_bytes(8, "big"))
    size, body = int.from_bytes(raw, "big"), b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    program, args, folder, environment = json.loads(body)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    defaults = json.loads(environment.get("MAV_TEST_DEFAULTS", "{}"))
    code = run(program, args, defaults)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = 1
    os._exit(code)


def main(address: str, early: str, while_alive: int) -> None:
    """Import what commands use, then serve while another process lives."""
    for name in _EARLY:
        importlib.import_module(name)
    listener = _listener(early)
    if os.fork():
        listener.close()
        import_all()
        listener = _listener(address)
    _serve(listener, while_alive)
    os.killpg(0, signal.SIGKILL)


def _listener(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    return listener


def _serve(listener: socket.socket, while_alive: int) -> None:
    gc.collect()
    gc.freeze()
    listener.settimeout(POLL)
    # Children are not waited for; what they answer is their exit code.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while psutil.pid_exists(while_alive):
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    _child(connection)
                finally:
                    os._exit(70)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
