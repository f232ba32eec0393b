"""The benchmark of heads and recipes, in miniature, and its table from a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.heads import __main__ as program
from benchmarks.heads import runs
from benchmarks.heads.grid import RECIPES, SIZES, variants
from benchmarks.heads.summary import rows_of, table
from benchmarks.result_lines import ResultLines
from mav.cache_schema.errors import UsageError
from mav.pipeline.evaluation.statistics import wilson
from mav.pipeline.training.options import TrainOptions

Call = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def call(
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Run the program with these options; return the rows it prints."""

    def run(*options: str) -> list[dict[str, Any]]:
        places = ["--cache", str(tiny_cache), "--work", str(tmp_path / "work")]
        results = ["--results", str(tmp_path / "results.jsonl")]
        monkeypatch.setattr(sys, "argv", ["heads", *places, *results, "--json", *options])
        program.main()
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return found

    return run


def test_finished_runs_are_lines_and_never_run_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--kinds", "bottleneck,mlp", "--recipes", "kl", "--eval-fraction", "0.3")
    (first,) = call(*few, "--most", "1")
    assert (first["head_type"], first["recipe"], first["seeds"]) == ("bottleneck", "kl", [0])
    assert first["options"]["lambda_kl"] == RECIPES["kl"]["lambda_kl"]
    begun = (tmp_path / "results.jsonl").read_text()
    both = call(*few)
    assert (tmp_path / "results.jsonl").read_text().startswith(begun)
    assert sorted(row["head_type"] for row in both) == ["bottleneck", "mlp"]
    assert first in both
    assert first["training_pairs"] + first["held_out_pairs"] == 40
    assert not [*(tmp_path / "work").iterdir()]

    def never(*_: Any) -> Any:
        raise AssertionError("it was run already")

    monkeypatch.setattr(runs, "train", never)
    assert call(*few) == both
    assert call(*few, "--table") == both
    with pytest.raises(AssertionError, match="run already"):
        call(*few, "--seeds", "0,1")


def line(seed: int, right: list[int], recipe: str = "kl") -> dict[str, Any]:
    (variant,) = variants(
        ["mlp"], [recipe], [seed], learning_rate=1e-3, num_epochs=1, eval_fraction=0.2
    )
    about = {**vars(variant), "options": variant.options(), "cache": {"pairs": 9}}
    return {
        "run": about,
        "right": right,
        "margin": [1.0 if one else -0.5 for one in right],
        "kl": [0.1 * (seed + 1)] * len(right),
        "evaluation": {"eval_scaled_loss": 0.5 + 0.1 * seed},
        "training_pairs": 5,
        "parameters": 1234,
        "cpu_seconds": 10.0 * (seed + 1),
    }


def test_seeds_of_one_thing_are_a_row() -> None:
    lines = [line(0, [1, 1, 0, 1]), line(1, [1, 1, 0, 1]), line(0, [1, 0, 0, 0], "sigmoid")]
    better, worse = rows_of(lines)
    assert (better["recipe"], better["seeds"], better["held_out_pairs"]) == ("kl", [0, 1], 4)
    # Seeds that agree say no more than one of them.
    assert better["accuracy"] == 0.75
    assert better["accuracy_interval"] == pytest.approx(wilson(3, 4))
    assert better["margin"] == pytest.approx(0.625)
    assert better["kl_per_token"] == pytest.approx(0.15)
    assert better["scaled_loss"] == pytest.approx(0.55)
    assert better["cpu_seconds"] == 15
    assert (worse["recipe"], worse["accuracy"], worse["seeds"]) == ("sigmoid", 0.25, [0])
    told = table([better, worse])
    assert "| `mlp` | `kl` | 2 | 75.0% [" in told
    assert "5 training, 4 held-out" in told


def test_a_line_that_was_cut_off_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    ResultLines(path).add({"seed": 0}, {"right": [1]})
    with path.open("a") as file:
        file.write('{"run": {"se')
    lines = ResultLines(path)
    assert "line 2: is no result" in capsys.readouterr().err
    lines.add({"seed": 1}, {"right": [0]})
    assert [found["run"] for found in ResultLines(path)] == [{"seed": 0}, {"seed": 1}]
    assert lines.get({"seed": 1}) == {"run": {"seed": 1}, "right": [0]}
    assert lines.get({"seed": 2}) is None


def test_every_variant_can_be_trained(tiny_cache: Path, tmp_path: Path) -> None:
    for variant in variants(
        [*SIZES], [*RECIPES], [0, 1], learning_rate=1e-3, num_epochs=1, eval_fraction=0.2
    ):
        TrainOptions(cache=tiny_cache, output_dir=tmp_path, **variant.options())


@pytest.mark.parametrize(
    ("kinds", "recipes", "told"),
    [
        (["mlp", "linear"], ["kl"], "--kinds: got 'linear', expected some of bottleneck, unembed"),
        (["mlp"], ["dpo"], "--recipes: got 'dpo', expected some of sigmoid, kl, ema, ipo, sft"),
    ],
)
def test_unknown_names_are_refused(kinds: list[Any], recipes: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        next(variants(kinds, recipes, [0], learning_rate=1e-3, num_epochs=1, eval_fraction=0.2))


def test_what_it_needs_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["heads"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "--cache: got none, expected a folder" in capsys.readouterr().err
