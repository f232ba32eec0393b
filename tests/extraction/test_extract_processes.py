"""Several processes: those of one run share the work, those of two runs keep apart."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray

from mav.cache_schema.errors import UsageError
from mav.cache_schema.reader import CacheReader
from mav.cache_schema.storage.open import open_object_store
from mav.pipeline.extraction.block_runner import BlockForward
from mav.pipeline.runtime.distributed import Processes, launched, require_joined
from tests.support.caches.written_caches import contents, lock_at_once
from tests.support.models.tiny import save_base, tiny_base, write_rows
from tests.support.running.commands import done, extract_args, mav, refused
from tests.support.running.limits import PROCESS, wait_until

ROOT = Path(__file__).parents[2]
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


PAIRS = 100
BLOCKS = 19
"""What so many pairs make by default."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A base, data for several blocks, and the cache one process made of them; read only."""

    base: Path
    data: Path
    cache: Path

    def extract(self, output: Path) -> list[object]:
        options = ("--batch-tokens", 512, "--json")
        return extract_args(self.base, self.data, output, *options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = World(
        base=save_base(tiny_base(), folder / "base"),
        data=write_rows(folder / "pairs.jsonl", PAIRS),
        cache=folder / "cache",
    )
    done(*made.extract(made.cache))
    assert CacheReader(made.cache).plan.blocks == BLOCKS
    return made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return kept | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | more


def start(count: int, *args: object, python: str | Path = sys.executable) -> subprocess.Popen[str]:
    """Launch `mav` as so many processes, as users are told to.

    Args:
        count: Number of processes.
        *args: What follows `mav`.
        python: What runs the launcher and all processes.
    """
    launcher = [python, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    return subprocess.Popen(
        [*launcher, "--master_port", str(free_port()), str(ROOT / "cli.py"), *map(str, args)],
        env=environment(PYTHON_EXEC=str(python)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PROCESS)
    finally:
        process.kill()
    return process.returncode, out, err


# Processes of one run


def test_two_processes_make_the_cache_that_one_makes(
    world: World, tmp_path: Path, warm_programs: Path
) -> None:
    command = world.extract(tmp_path / "cache")
    code, out, err = finished(start(2, *command, python=warm_programs / "python"))
    assert code == 0, err
    # One speaks for both.
    found = json.loads(out)
    assert (found["pairs"], found["pairs_done"], found["blocks"]) == (PAIRS, PAIRS, BLOCKS)
    assert err.count(f"{PAIRS} pairs kept") == 1
    assert err.count(f"2 processes share {BLOCKS} blocks") == 1
    assert contents(tmp_path / "cache") == contents(world.cache)
    assert done("verify", tmp_path / "cache").endswith("\nSound.\n")
    assert sorted(open_object_store(tmp_path / "cache").sizes()) == sorted(
        open_object_store(world.cache).sizes()
    )


def worker(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    for process in psutil.Process(launcher.pid).children(recursive=True):
        if process.environ().get("RANK") == str(rank):
            return process
    raise AssertionError(f"no process {rank}")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_when_one_is_killed_all_end_and_one_goes_on(
    world: World, tmp_path: Path, rank: int
) -> None:
    cache = tmp_path / "cache"
    # So slow that others are at work when the first block is written.
    slowly = [*world.extract(cache), "--batch-tokens", 1]
    launcher = start(3, *slowly)
    try:
        wait_until(lambda: contents(cache) or launcher.poll() is not None, PROCESS)
        assert launcher.poll() is None
        worker(launcher, rank).send_signal(signal.SIGKILL)
    finally:
        code, out, err = finished(launcher)
    assert (code, out) == (1, ""), err
    assert f'File "{ROOT}/cli.py"' not in err
    before = contents(cache)
    assert 0 < len(before) < BLOCKS
    told = refused(1, "train", "--cache", cache, "--output-dir", tmp_path / "run")
    assert f"incomplete, {len(before)} of {BLOCKS} blocks are written" in told
    result = mav(*slowly)
    assert result.exit_code == 0, result.output
    assert f"{len(before)} of {BLOCKS} blocks are written" in result.stderr
    assert contents(cache).keys() == contents(world.cache).keys()
    assert done("verify", cache, "--against-base", 12).endswith("\nSound.\n")
    whole = tmp_path / "whole"
    done(*world.extract(whole), "--batch-tokens", 1)
    assert contents(cache) == contents(whole)


@pytest.mark.slow
def test_more_processes_than_before_go_on(world: World, tmp_path: Path) -> None:
    cache = shutil.copytree(world.cache, tmp_path / "cache")
    for block in (0, 3, 4):
        (cache / "labels" / f"c.{block}").unlink()
    assert mav("verify", cache, "--repair").exit_code == 1
    code, out, err = finished(start(3, *world.extract(cache)))
    assert code == 0, err
    assert f"Resuming: {BLOCKS - 3} of {BLOCKS} blocks are written" in err
    assert json.loads(out)["pairs_done"] < PAIRS
    assert contents(cache) == contents(world.cache)


@pytest.mark.slow
def test_what_only_the_first_process_meets_ends_all(world: World, tmp_path: Path) -> None:
    with lock_at_once(open_object_store(tmp_path / "cache")):
        code, out, err = finished(start(2, *world.extract(tmp_path / "cache")))
    message = (
        f"{tmp_path / 'cache'}: another run is writing to this cache, process {os.getpid()} on "
    )
    assert (code, out) == (1, "")
    # Whoever is the first to end speaks; the launcher may be faster than the others.
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert errors
    for line in errors:
        assert (
            line.removeprefix("Error: ")
            .removeprefix("The first process failed: ")
            .startswith(message)
        )
    assert f'File "{ROOT}/cli.py"' not in err
    assert not (tmp_path / "cache").exists()


# Alone


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return Processes(on_cpu=True)


def test_one_process_is_the_first_and_all_there_are(alone: Processes) -> None:
    assert (alone.rank, alone.local_rank, alone.count, alone.first) == (0, 0, 1, True)
    assert alone.gather("mine") == ["mine"]
    assert alone.from_first(lambda: 5) == 5
    assert alone.from_first(lambda: None) is None


def test_one_process_meets_its_own_errors(alone: Processes) -> None:
    def fails() -> None:
        raise UsageError("as it was raised")

    with pytest.raises(UsageError, match="as it was raised"):
        alone.from_first(fails)


def test_the_number_of_processes_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == 1
    require_joined(1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == 3
    require_joined(3)
    with pytest.raises(UsageError, match=r"3 processes were launched, but this one sees 1\. .*CPU"):
        require_joined(1)


def test_one_process_needs_no_accelerate() -> None:
    code = (
        "import sys\nfrom mav.pipeline.runtime.distributed import Processes\n"
        "Processes(on_cpu=True)\n"
        "sys.exit(bool({'torch', 'accelerate'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment())
    assert found.returncode == 0


# Two, without a launcher

TOGETHER = """
import os
from mav.cache_schema.errors import MAVError
from mav.pipeline.runtime.distributed import Processes

processes = Processes(on_cpu=True)
rank = processes.rank
assert (processes.count, processes.local_rank, processes.first) == (2, rank, rank == 0)
assert processes.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
made = []
assert processes.from_first(lambda: made.append(rank) or "told") == "told"
assert made == ([0] if rank == 0 else [])
assert processes.from_first(lambda: None) is None

def fails():
    raise KeyError("boom")

try:
    processes.from_first(fails)
except KeyError:
    assert rank == 0
except MAVError as error:
    assert rank == 1
    print(error, flush=True)
# An error does not put them out of step.
assert processes.from_first(lambda: 7) == 7
assert processes.gather(rank) == [0, 1]
if rank == 1:
    os._exit(3)
try:
    processes.gather(0)
except MAVError as error:
    print(error, flush=True)
# The library's threads may not survive an orderly end.
os._exit(0)
"""


def test_two_processes_are_told_what_the_first_found(warm_programs: Path) -> None:
    port = str(free_port())
    begun = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        begun.append(
            subprocess.Popen(
                [warm_programs / "python", "-c", TOGETHER],
                env=environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **own),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    (code, out, err), (other_code, other_out, other_err) = map(finished, begun)
    assert (code, other_code) == (0, 3), err + other_err
    assert out.startswith("Another process of this run has failed (")
    assert out.endswith("Run the same command again; it resumes where it stopped.\n")
    assert other_out == "The first process failed: 'boom'\n"


def test_processes_that_do_not_know_of_each_other_are_refused(warm_programs: Path) -> None:
    code = (
        "from mav.pipeline.runtime.distributed import Processes\n"
        "from mav.cache_schema.errors import UsageError\n"
        "try:\n    Processes(on_cpu=False)\n"
        "except UsageError as error:\n    print(error)"
    )
    env = {key: value for key, value in environment(WORLD_SIZE="2").items() if "USE_CPU" not in key}
    python = warm_programs / "python"
    found = subprocess.run([python, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.stdout.startswith("2 processes were launched, but this one sees 1."), found.stderr
    assert "set ACCELERATE_USE_CPU=1" in found.stdout


def test_a_number_of_processes_without_their_places_is_refused(warm_programs: Path) -> None:
    code = "from mav.pipeline.runtime.distributed import Processes\nProcesses(on_cpu=True)"
    found = subprocess.run(
        [warm_programs / "python", "-c", code],
        cwd=ROOT,
        env=environment(WORLD_SIZE="2"),
        capture_output=True,
        text=True,
    )
    assert found.stderr.strip().splitlines()[-1].startswith("mav.cache_schema.errors.UsageError: ")


# Unrelated runs


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_second_run_on_one_cache_is_refused(world: World, tmp_path: Path, begun: bool) -> None:
    cache = tmp_path / "cache"
    if begun:
        shutil.copytree(world.cache, cache)
        (cache / "labels" / "c.2").unlink()
        assert mav("verify", cache, "--repair").exit_code == 1
    with lock_at_once(open_object_store(cache)):
        told = refused(1, *world.extract(cache))
        assert told.startswith(f"{cache}: another run is writing to this cache, ")
        assert f"process {os.getpid()} on {socket.gethostname()} since " in told
        assert (f"process {os.getpid()} on " in mav("inspect", cache).stdout) == begun
    assert json.loads(done(*world.extract(cache)))["blocks"] == BLOCKS
    assert contents(cache) == contents(world.cache)


def test_a_complete_cache_is_left_as_it_is_whoever_holds_it(world: World, tmp_path: Path) -> None:
    cache = shutil.copytree(world.cache, tmp_path / "cache")
    with lock_at_once(open_object_store(cache)):
        assert json.loads(done(*world.extract(cache)))["pairs_done"] == 0
        # A dry run writes nothing, so nobody is in its way.
        assert json.loads(done(*world.extract(cache), "--dry-run"))["missing_pairs"] == 0


def test_a_run_whose_lock_was_removed_stops(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    run = BlockForward.run

    def unlocked(self: BlockForward, *args: Any) -> dict[str, NDArray[Any]]:
        (cache / "lock.json").unlink(missing_ok=True)
        return run(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BlockForward, "run", unlocked)
        told = refused(1, *world.extract(cache))
    assert told.startswith(f"{cache}: this run has lost the cache's lock; its lock was removed")
    assert contents(cache) == {}
    assert json.loads(done(*world.extract(cache)))["pairs_done"] == PAIRS
