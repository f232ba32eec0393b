"""The figures by which the best head is chosen, against plain computations."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mav.cache_schema import CacheReader
from mav.cache_schema.checksummed_json import BLANK_CHECKSUM, add_checksum
from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.choices import KeepBy
from mav.pipeline.training.criteria import CRITERIA, of_margins, scaled_loss
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import Trainer
from tests.support.running.runs import OF_EVALUATIONS, checkpoint, interrupted_after, metrics, run
from tests.support.steering.heads import FRACTION

MARGINS = (
    [0.3, -0.2, 1.7],
    [5.0, -0.1, 2.0, 3.0, -4.0],
    [1e-6, -2e-7, 3e-6],
    [400.0, -90.0, 800.0],
    [2.0, 2.0, -1.0, 0.0],
)


def loss_at(margins: list[float], scale: float) -> float:
    return sum(
        max(0.0, -x) + math.log1p(math.exp(-abs(x))) for x in (scale * m for m in margins)
    ) / len(margins)


@pytest.mark.parametrize("margins", MARGINS, ids=str)
def test_the_scaled_loss_is_the_least_of_all_scales(margins: list[float]) -> None:
    found = scaled_loss(torch.tensor(margins, dtype=torch.float64))
    largest = max(map(abs, margins))
    tried = [loss_at(margins, 10 ** (power / 500) / largest) for power in range(-2000, 2000)]
    assert min(tried) - 1e-5 < found <= min(tried) + 1e-12
    times = torch.tensor(margins, dtype=torch.float64) * 37
    assert scaled_loss(times) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([1.0, 2.0], 0.0),
        ([0.0, 0.0], math.log(2)),
        ([0.0, 3.0, 4.0, 5.0], math.log(2) / 4),
        ([-1.0, 0.5], math.log(2)),
        ([-3.0], math.log(2)),
        ([1.0, -1.0], math.log(2)),
    ],
)
def test_where_no_scale_is_best(margins: list[float], expected: float) -> None:
    assert scaled_loss(torch.tensor(margins, dtype=torch.float64)) == pytest.approx(expected)


def test_margin_over_the_root_of_kl_by_hand() -> None:
    margins = torch.tensor([1.0, 2.0, -1.5])
    assert of_margins(margins, 0.25)["margin_per_root_kl"] == pytest.approx(0.5 / 0.5)
    assert of_margins(torch.zeros(2), 0.0)["margin_per_root_kl"] == 0.0


def test_an_evaluation_logs_what_its_pairs_say(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path, eval_steps=8)
    reader = CacheReader(tiny_cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    cpu = torch.device("cpu")
    head = load_head(str(tmp_path / "last")).head
    (scores,) = score_pairs(head, reader, wanted.tolist(), [1.0], cpu, torch.float32)
    margins = (scores.gains[:, 0] - scores.gains[:, 1]).tolist()
    lengths = torch.from_numpy(reader.plan.response_length[wanted].sum(1))
    kl = float((scores.kl * lengths).sum() / lengths.sum())
    (line,) = (line for line in metrics(tmp_path) if "eval_loss" in line)
    least = min(loss_at(margins, power / 1000) for power in range(20_000))
    assert line["eval_kl"] == pytest.approx(kl, rel=1e-3)
    assert line["eval_scaled_loss"] == pytest.approx(least, abs=1e-3)
    assert line["eval_rewards/accuracies"] == sum(m > 0 for m in margins) / len(margins)
    mean = sum(margins) / len(margins)
    assert line["eval_margin_per_root_kl"] == pytest.approx(mean / math.sqrt(kl), rel=1e-3)


def told(monkeypatch: pytest.MonkeyPatch, metric: str, values: list[float]) -> None:
    """Have evaluations say so of one metric; the loss gets worse from the first on."""
    left = iter(enumerate(values))

    def evaluate(*_: Any) -> dict[str, float]:
        number, value = next(left)
        return {**dict.fromkeys(OF_EVALUATIONS, 0.5), "loss": 1.0 + number, metric: value}

    monkeypatch.setattr(Trainer, "evaluate", evaluate)


@pytest.mark.parametrize(
    ("keep_by", "metric", "values", "best"),
    [
        ("loss", "loss", [0.5, 0.3, 0.4, 0.3], 4),
        ("accuracy", "rewards/accuracies", [0.5, 0.7, 0.6, 0.7], 4),
        ("scaled_loss", "scaled_loss", [0.69, 0.68, 0.60, 0.65], 6),
        ("margin_per_root_kl", "margin_per_root_kl", [-1.0, 2.0, 1.0, 3.0], 8),
        ("last", "loss", [0.1, 0.2, 0.3, 0.4], 8),
    ],
)
def test_the_best_head_is_the_best_by_what_was_asked_for(
    tiny_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep_by: KeepBy,
    metric: str,
    values: list[float],
    best: int,
) -> None:
    told(monkeypatch, metric, values)
    report = run(tiny_cache, tmp_path, eval_steps=2, keep_by=keep_by)
    assert (report.best_step, report.keep_by) == (best, keep_by)
    assert load_head(str(tmp_path)).origin.steps == best
    expected = best if keep_by == "last" else values[best // 2 - 1]
    assert checkpoint(tmp_path).state.best_value == expected


def test_waiting_ends_by_it_too(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    told(monkeypatch, "rewards/accuracies", [0.6, 0.7, 0.65, 0.7, 0.9])
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 2, "early_stopping": 2}
    report = run(tiny_cache, tmp_path, keep_by="accuracy", **settings)
    assert (report.steps, report.best_step) == (8, 4)
    assert messages[-1].endswith("2 evaluations without a better held-out reward accuracy")


def test_a_run_that_diverged_is_told_whatever_is_kept(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, "loss", [math.nan])
    with pytest.raises(DataError, match="the held-out loss is nan at step 2"):
        run(tiny_cache, tmp_path, eval_steps=2, keep_by="accuracy")


def test_every_name_is_in_the_table() -> None:
    assert set(CRITERIA) == set(get_args(KeepBy))
    assert {c.metric for c in CRITERIA.values()} - {None} <= OF_EVALUATIONS


def test_what_cannot_be_judged_by_is_refused() -> None:
    with pytest.raises(UsageError, match=r"keep_by: got accuracy, but nothing is held out"):
        TrainOptions(cache="c", output_dir=Path("o"), eval_fraction=0.0, keep_by="accuracy")
    with pytest.raises(UsageError, match=r"early_stopping: got 2 with `keep_by` last"):
        TrainOptions(cache="c", output_dir=Path("o"), keep_by="last", early_stopping=2)


def test_a_run_goes_on_by_what_it_was_begun_with(tiny_cache: Path, tmp_path: Path) -> None:
    with interrupted_after(5):
        run(tiny_cache, tmp_path, eval_steps=2)
    with pytest.raises(MismatchError, match="keep_by: begun with 'loss', got 'accuracy'"):
        run(tiny_cache, tmp_path, eval_steps=2, keep_by="accuracy", resume=True)


def test_a_checkpoint_that_knows_a_loss_alone_is_read(tiny_cache: Path, tmp_path: Path) -> None:
    """Those of earlier programs name the best value `best_loss` and lack newer options."""
    with interrupted_after(5):
        run(tiny_cache, tmp_path, eval_steps=2)
    begun = checkpoint(tmp_path)
    state = dataclasses.asdict(begun.state)
    state["best_loss"] = state.pop("best_value")
    for name in ("lambda_kl", "lambda_sft", "ld_alpha", "ema", "keep_by"):
        del state["trajectory"][name]
    path = begun.folder / "state.json"
    document = {**json.loads(path.read_bytes()), "state": state, "seal": BLANK_CHECKSUM}
    path.write_bytes(add_checksum(document))
    assert checkpoint(tmp_path).state.best_value == begun.state.best_value is not None
    assert run(tiny_cache, tmp_path, eval_steps=2, resume=True).steps == 8
