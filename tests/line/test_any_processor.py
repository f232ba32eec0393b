"""The line with all defaults on a processor without bfloat16 instructions, in its own process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mav.pipeline.runtime.compute_dtype import native_dtype
from mav.pipeline.training.checkpoint import TrainState
from mav.pipeline.training.defaults import settled
from mav.pipeline.training.options import TrainOptions
from tests.support.caches.manifests import llama_7b
from tests.support.models.tiny import save_base, tiny_base, write_rows

WITHOUT_BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
PROGRAM = """
import sys
from mav.cli import main
for line in sys.stdin.read().splitlines():
    print("$", line.split()[0], file=sys.stderr)
    main(line.split(), standalone_mode=False)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command said beside its result; the last one is the result of `inspect`."""
    folder = tmp_path_factory.mktemp("line")
    base, rows = save_base(tiny_base(), folder / "base"), write_rows(folder / "pairs.jsonl", 24)
    cache, run = folder / "cache", folder / "run"
    lines = [
        f"extract --base-model {base} --dataset {rows} --output {cache} --device cpu",
        f"train --cache {cache} --output-dir {run} --eval-fraction 0.3 --report-to none",
        f"evaluate --head {run} --cache {cache} --alphas 0,1 --json",
        f"generate --head {run} --prompt Hello --max-new-tokens 4 --device cpu",
        f"verify {cache} --against-base 2 --device cpu",
        f"inspect {cache} --json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env={**os.environ, **WITHOUT_BFLOAT16, "ACCELERATE_USE_CPU": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    parts = dict(part.split("\n", 1) for part in done.stderr.split("$ ")[1:])
    return {**parts, "printed": done.stdout}


@pytest.mark.parametrize("command", ["extract", "train", "evaluate", "generate"])
def test_float32_is_chosen_and_told_in_one_line(told: dict[str, str], command: str) -> None:
    lines = [line for line in told[command].splitlines() if line.startswith("Computing in")]
    (line,) = lines
    assert line.startswith("Computing in float32: ")
    assert "bfloat16" in line
    assert "slow" not in told[command]


def test_it_is_recorded_and_states_are_stored_in_bfloat16(told: dict[str, str]) -> None:
    printed = told["printed"]
    evaluated = json.loads(printed[printed.index('{\n "head"') : printed.index("\n}\n") + 3])
    assert evaluated["computed_in"] == "float32"
    described = json.loads(printed[printed.index('{\n "kind"') :])
    assert described["computed_in"] == "float32"
    assert described["states"].endswith("stored in bfloat16")
    assert "pooled to 32," in described["states"]


def test_it_is_verified_in_the_type_it_was_computed_in(told: dict[str, str]) -> None:
    assert "in float32" in told["verify"]
    assert "Sound." in told["printed"]


@pytest.mark.parametrize(("begun", "expected"), [(True, True), (False, False), (None, None)])
def test_a_training_run_goes_on_in_the_type_it_was_begun_in(
    begun: bool | None, expected: bool | None, messages: list[str]
) -> None:
    options = TrainOptions(cache="c", output_dir=Path("o"), expansion_size=8)
    device = torch.device("cpu")
    state = TrainState(
        step=1,
        best_step=None,
        best_value=None,
        trajectory={} if begun is None else {"bf16": begun},
        cache_identity="x",
        complete=False,
    )
    messages.clear()
    found = settled(options, llama_7b(), device, begun=state)
    # What was not recorded is as if it were begun now.
    assert found.bf16 is (native_dtype(device) == torch.bfloat16 if expected is None else expected)
    assert any("in which the run was begun" in line for line in messages) == (begun is not None)
    assert settled(dataclasses.replace(options, bf16=True), llama_7b(), device, begun=state).bf16
