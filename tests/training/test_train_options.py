"""Options of a training run beside what it learns: batches, stopping, trackers, optimizers."""

from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.loader.batch import Batch
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import Trainer
from tests.support.running.runs import (
    METRICS,
    assert_same,
    checkpoint,
    interrupted_after,
    metrics,
    run,
    weights,
)


def evaluations(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Have held-out losses come out as told."""
    left = iter(losses)
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: dict.fromkeys(METRICS, next(left)))


def test_a_run_stops_when_it_no_longer_improves(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    evaluations(monkeypatch, [0.5, 0.3, 0.4, 0.35])
    report = run(tiny_cache, tmp_path, num_epochs=2, eval_steps=2, early_stopping=2)
    assert (report.steps, report.best_step, report.stopped_early) == (8, 4, True)
    assert messages[-1] == (
        "Stopped after step 8 of 16: 2 evaluations without a better held-out loss"
    )
    assert checkpoint(tmp_path).state.complete
    assert (tmp_path / "last").is_dir()
    again = run(tiny_cache, tmp_path, num_epochs=2, eval_steps=2, early_stopping=2, resume=True)
    assert (again.steps, again.stopped_early) == (8, True)


def test_a_run_that_improves_goes_to_its_end(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, [0.5, 0.6, 0.4, 0.5])
    report = run(tiny_cache, tmp_path, eval_steps=2, early_stopping=2)
    assert (report.steps, report.stopped_early) == (8, False)


def test_early_stopping_needs_something_to_judge_by() -> None:
    with pytest.raises(UsageError, match=r"early_stopping: nothing is held out"):
        TrainOptions(cache="c", output_dir=Path("o"), eval_fraction=0.0, early_stopping=1)


def test_batches_by_tokens_hold_no_more(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = int(CacheReader(tiny_cache).plan.response_length.sum(axis=1).max())
    budget = 2 * longest
    seen: list[Batch] = []
    whole = Trainer.step

    def step(trainer: Trainer, number: int, rate: float, batches: Any, *rest: Any) -> float:
        seen.extend(batches)
        return whole(trainer, number, rate, batches, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    settings: dict[str, Any] = {"batch_size": None, "batch_tokens": budget, "num_epochs": 2}
    report = run(tiny_cache, tmp_path / "run", **settings)
    assert max(len(batch.labels) for batch in seen) <= budget
    assert sum(batch.pairs for batch in seen) == 2 * 32
    assert report.steps == len(seen) // 2
    with interrupted_after(report.steps // 2 + 1):
        run(tiny_cache, tmp_path / "cut", **settings, eval_steps=1)
    run(tiny_cache, tmp_path / "cut", **settings, eval_steps=1, resume=True)
    assert_same(weights(tmp_path / "cut" / "last"), weights(tmp_path / "run" / "last"))


def test_pairs_and_tokens_cannot_both_count() -> None:
    with pytest.raises(UsageError, match=r"batch_size: got 4, and `batch_tokens` 100"):
        TrainOptions(cache="c", output_dir=Path("o"), batch_size=4, batch_tokens=100)


def test_threads_that_read_change_nothing(tiny_cache: Path, tmp_path: Path) -> None:
    for workers in (0, 3):
        run(tiny_cache, tmp_path / str(workers), workers=workers)
    assert_same(weights(tmp_path / "0" / "last"), weights(tmp_path / "3" / "last"))


def test_no_tracker_leaves_the_log_alone(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path / "run", report_to="none")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "best",
        "last",
        "checkpoints",
        "metrics.jsonl",
    }


def test_a_tracker_that_is_not_installed_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report_to: got 'wandb', .*pip install wandb"):
        run(tiny_cache, tmp_path / "run", report_to="wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own making
def test_eight_bit_moments_follow_exact_ones(tiny_cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    # Weights of fewer than 4,096 elements keep exact moments.
    settings: dict[str, Any] = {"expansion_size": 128, "num_epochs": 2, "eval_steps": 4}
    for name in ("adamw", "adamw-8bit"):
        run(tiny_cache, tmp_path / name, **settings, optimizer=name)
    exact, eight = (
        [line["loss"] for line in metrics(tmp_path / name) if "loss" in line]
        for name in ("adamw", "adamw-8bit")
    )
    assert eight == pytest.approx(exact, abs=0.05)
    assert eight != exact
    found = checkpoint(tmp_path / "adamw-8bit")
    assert "project.weight.exp_avg.codes" in found.tensors("optimizer")
    with interrupted_after(6):
        run(tiny_cache, tmp_path / "cut", **settings, optimizer="adamw-8bit")
    with pytest.raises(MismatchError, match="optimizer: begun with"):
        run(tiny_cache, tmp_path / "cut", **settings, resume=True)
    run(tiny_cache, tmp_path / "cut", **settings, optimizer="adamw-8bit", resume=True)
    assert_same(weights(tmp_path / "cut" / "last"), weights(tmp_path / "adamw-8bit" / "last"))
