"""Training on several processes: copied (DDP) or in shards (FSDP2), against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mav.pipeline.runtime.choices import HeadKind

SCRIPT = """
import json, logging, sys
from pathlib import Path
from mav.pipeline.training.train import train
from mav.pipeline.training.options import TrainOptions

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
options = json.loads(sys.argv[1])
for name in ("cache", "output_dir"):
    options[name] = Path(options[name])
train(TrainOptions(**options))
"""
HERE = str(Path(__file__).parents[2])

pytestmark = pytest.mark.slow


def train_on(processes: int, folder: Path, **options: Any) -> list[str]:
    """Train on so many processes; return what was told."""
    options = {
        "output_dir": str(folder),
        "expansion_size": 16,
        "dropout": 0.0,
        "eval_fraction": 0.3,
        "learning_rate": 1e-2,
        "num_epochs": 2,
        "bf16": False,
        "workers": 1,
        **options,
    }
    # On a machine without accelerators, `accelerate launch --num_processes 2` starts one process.
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), str(script), json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": HERE, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = safetensors.torch.load_file(
        folder / "last" / "model.safetensors"
    )
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if "per_second" not in name}
        for line in lines
    ]


def assert_close(found: Path, expected: Path, *, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def one(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, eight pairs per step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train_on(1, folder, cache=str(tiny_cache), batch_size=8)
    return folder


@pytest.mark.parametrize(
    ("processes", "batch_size", "grad_accum", "shard"),
    [(2, 4, 1, False), (2, 2, 2, False), (2, 4, 1, True), (2, 2, 2, True), (4, 2, 1, True)],
)
def test_several_processes_train_the_head_of_one(
    tiny_cache: Path,
    tmp_path: Path,
    one: Path,
    processes: int,
    batch_size: int,
    grad_accum: int,
    shard: bool,
) -> None:
    said = train_on(
        processes,
        tmp_path / "run",
        cache=str(tiny_cache),
        batch_size=batch_size,
        grad_accum=grad_accum,
        shard=shard,
    )
    assert_close(tmp_path / "run", one)
    for line, other in zip(metrics(tmp_path / "run"), metrics(one), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)
    # One process speaks for all; the steps it tells of are of pairs of all.
    assert sum(line.endswith("of 8 pairs") for line in said) == 1


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("kind", ["unembedding", "bottleneck"])
def test_heads_of_other_kinds_are_trained_together_too(
    tiny_cache: Path, tmp_path: Path, kind: HeadKind, shard: bool
) -> None:
    options: dict[str, Any] = {
        "cache": str(tiny_cache),
        "expansion_size": None,
        "head_type": kind,
        "rank": 16,
    }
    train_on(1, tmp_path / "one", batch_size=8, **options)
    train_on(2, tmp_path / "two", batch_size=4, shard=shard, **options)
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("shard", [False, True])
def test_the_first_process_gives_tokens_their_credit_for_all(
    tiny_cache: Path, tmp_path: Path, shard: bool
) -> None:
    options: dict[str, Any] = {"cache": str(tiny_cache), "objective": "credit"}
    train_on(1, tmp_path / "one", batch_size=8, **options)
    said = train_on(2, tmp_path / "two", batch_size=4, shard=shard, **options)
    assert_close(tmp_path / "two", tmp_path / "one")
    assert sum(line.startswith("Credit of tokens from layer") for line in said) == 1


@pytest.mark.parametrize("shard", [False, True])
def test_terms_and_averages_are_those_of_one_process(
    tiny_cache: Path, tmp_path: Path, shard: bool
) -> None:
    options: dict[str, Any] = {
        "cache": str(tiny_cache),
        "lambda_kl": 0.5,
        "lambda_sft": 0.1,
        "ld_alpha": 0.5,
        "ema": 0.8,
        "keep_by": "scaled_loss",
        "eval_steps": 4,
    }
    train_on(1, tmp_path / "one", batch_size=8, **options)
    train_on(2, tmp_path / "two", batch_size=4, shard=shard, **options)
    assert_close(tmp_path / "two", tmp_path / "one")
    for line, other in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_batches_by_tokens_are_shared_out_too(tiny_cache: Path, tmp_path: Path) -> None:
    cache = str(tiny_cache)
    train_on(1, tmp_path / "one", cache=cache, batch_tokens=40, grad_accum=2)
    train_on(2, tmp_path / "two", cache=cache, batch_tokens=40, grad_accum=1)
    assert_close(tmp_path / "two", tmp_path / "one")


def test_shards_in_bfloat16_follow_copies_in_bfloat16(tiny_cache: Path, tmp_path: Path) -> None:
    for name, shard in (("copied", False), ("sharded", True)):
        train_on(2, tmp_path / name, cache=str(tiny_cache), batch_size=4, shard=shard, bf16=True)
    found, expected = weights(tmp_path / "sharded"), weights(tmp_path / "copied")
    for name in expected:
        assert (found[name] - expected[name]).norm() < 0.02 * expected[name].norm()


@pytest.mark.parametrize(("before", "after"), [((2, 4, True), (1, 8, False))])
def test_a_run_goes_on_with_other_processes(
    tiny_cache: Path,
    tmp_path: Path,
    one: Path,
    before: tuple[int, int, bool],
    after: tuple[int, int, bool],
) -> None:
    cache = str(tiny_cache)
    processes, batch_size, shard = before
    folder = tmp_path / "run"
    options: dict[str, Any] = {"cache": cache, "eval_steps": 2}
    train_on(processes, folder, batch_size=batch_size, shard=shard, **options)
    cut_back(folder)
    processes, batch_size, shard = after
    said = train_on(processes, folder, batch_size=batch_size, shard=shard, resume=True, **options)
    assert any(line.startswith("Going on after step") for line in said)
    assert_close(folder, one)


def cut_back(folder: Path) -> None:
    """Leave the run as it was at the checkpoint before the last."""
    newest = max((folder / "checkpoints").glob("step-*"))
    (newest / "state.json").write_text("damaged")
