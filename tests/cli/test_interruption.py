"""Real signals to real processes: what is kept is told as it is, and the rest is run later."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mav.cache_schema.commits import read_commits
from mav.cache_schema.root import read_manifest
from mav.cache_schema.storage.open import open_object_store
from tests.support.running.commands import Line, done
from tests.support.running.limits import PROCESS

ROOT = Path(__file__).parents[2]
# What a shell starts in the background ignores SIGINT, and so would all that is started here.
TO_ITSELF = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
def stop():
    os.kill(os.getpid(), signal.{name})
"""
IN_BLOCK = """
from mav.pipeline.extraction.block_runner import BlockForward
run, begun = BlockForward.run, []
def counted(self, pairs, progress):
    begun.append(pairs)
    def then(count):
        progress(count)
        if len(begun) == {block}:
            stop()
    return run(self, pairs, then)
BlockForward.run = counted
"""
STUCK = """
import threading
from mav.pipeline.extraction import blocks
blocks.CacheWriter.write_block = lambda *_: threading.Event().wait()
info = blocks._log.info
def again(message):
    info(message)
    if "Ctrl-C again" in message:
        stop()
blocks._log.info = again
"""
IN_STEP = """
from mav.pipeline.training.trainer import Trainer
step = Trainer.step
def stopped(self, number, *args):
    if number == {step}:
        stop()
    return step(self, number, *args)
Trainer.step = stopped
"""
IN_ANSWERS = """
from mav.pipeline.runtime import resumable_lines as answers
append, times = answers._append, []
def stopped(file, values):
    times.append(values)
    if len(times) == 4:
        stop()
    append(file, values)
answers._append = stopped
"""
START = "\nfrom mav.cli import main\nmain()\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line.begun(tmp_path_factory.mktemp("line"), 64)


Stopped = Callable[..., str]


@pytest.fixture
def stopped(warm_programs: Path) -> Stopped:
    """Runs a command that signals itself; returns what it said on standard error."""

    def run(program: str, *args: object, name: str = "SIGINT") -> str:
        code = TO_ITSELF.format(name=name) + program + START
        ran = subprocess.run(
            [warm_programs / "python", "-c", code, *map(str, args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PROCESS,
        )
        assert ran.returncode == 128 + signal.Signals[name], ran.stderr
        assert "Traceback" not in ran.stderr
        return ran.stderr

    return run


def extract_to(line: Line, cache: Path) -> list[object]:
    # A pair at a time, so that a block is stopped in its middle.
    return [cache if arg == line.cache else arg for arg in line.extract] + ["--batch-tokens", 1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_extraction_tells_what_it_kept(
    stopped: Stopped, line: Line, tmp_path: Path, name: str
) -> None:
    cache = tmp_path / "cache"
    told = stopped(IN_BLOCK.format(block=4), *extract_to(line, cache), name=name)
    objects = open_object_store(cache)
    manifest = read_manifest(objects)
    kept = read_commits(objects, manifest, objects.sizes()).records
    pairs = sum(record.pairs for record in kept.values())
    assert sorted(kept) == [0, 1, 2]  # also those that were computed and waited
    assert f"Interrupted. 3 of {manifest.plan.blocks} blocks are written and kept, " in told
    assert f", {pairs} of 64 pairs. The same command resumes from there; " in told
    assert re.search(r"there; [1-9]\d* pairs that had run are run again\.", told)
    assert "lock.json" not in objects.sizes()
    done(*extract_to(line, cache))
    assert read_manifest(objects).complete


def test_a_second_signal_ends_it_at_once(stopped: Stopped, line: Line, tmp_path: Path) -> None:
    told = stopped(IN_BLOCK.format(block=2) + STUCK, *extract_to(line, tmp_path / "cache"))
    assert "Ctrl-C again ends at once" in told
    assert "Interrupted. Blocks that were written are kept." in told


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, "No checkpoint was written yet; the first comes at step 2, and 1 steps were taken. "
            "The same command starts over."),
        (5, "The last checkpoint is of step 4 of "),
    ],
)  # fmt: skip
def test_a_training_tells_what_it_kept(
    stopped: Stopped, line: Line, tmp_path: Path, step: int, expected: str
) -> None:
    train = [tmp_path / "run" if arg == line.run else arg for arg in line.train]
    told = stopped(IN_STEP.format(step=step), *train, "--eval-steps", 2)
    assert f"Interrupted. {expected}" in told
    done(*train, "--eval-steps", 2, *(["--resume"] if step > 2 else []))


def test_answers_that_are_kept_are_counted(stopped: Stopped, line: Line, tmp_path: Path) -> None:
    if not line.run.exists():
        done(*line.train)
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("".join(f"Say {number}.\n" for number in range(6)))
    generate = [*line.generate, "--prompts", prompts, "--output", output, "--batch-size", 1]
    told = stopped(IN_ANSWERS, *generate)
    kept = len(Path(f"{output}.partial").read_text().splitlines()) - 1
    assert 0 < kept < 6
    assert f"Interrupted. {kept} of 6 answers are kept, in {output}.partial. " in told
    done(*generate)
    assert len(output.read_text().splitlines()) == 6
