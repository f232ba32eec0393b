"""The moving average of the weights, which is what is evaluated and saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import MismatchError, UsageError
from mav.pipeline.evaluation.pair_scores import score_pairs
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import Trainer
from tests.support.heads import FRACTION, KINDS
from tests.support.runs import (
    assert_same,
    checkpoint,
    interrupted_after,
    metrics,
    run,
    weights,
)

DECAY = 0.6


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Weights as training has them, before the first step and after each."""
    seen: list[dict[str, Tensor]] = []
    whole = Trainer.step

    def record(trainer: Trainer) -> None:
        seen.append({name: p.detach().clone() for name, p in trainer.head.named_parameters()})

    def step(trainer: Trainer, number: int, *rest: Any) -> float:
        if number == 0:
            record(trainer)
        norm = whole(trainer, number, *rest)
        record(trainer)
        return norm

    monkeypatch.setattr(Trainer, "step", step)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_it_follows_its_formula_and_leaves_training_alone(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: HeadKind
) -> None:
    run(tiny_cache, tmp_path / "plain", head_type=kind, eval_steps=3)
    seen = recorded(monkeypatch)
    run(tiny_cache, tmp_path / "run", head_type=kind, eval_steps=3, ema=DECAY)
    assert len(seen) == 9
    expected = {name: first.double() for name, first in seen[0].items()}
    for steps, now in enumerate(seen[1:], 1):
        decay = min(DECAY, (1 + steps) / (10 + steps))
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in expected}
    found = weights(tmp_path / "run" / "last")
    for name, average in expected.items():
        torch.testing.assert_close(found[name].double(), average, rtol=1e-5, atol=1e-7)
    saved = checkpoint(tmp_path / "run")
    assert_same(saved.tensors("average"), found)
    assert_same(saved.tensors("head"), seen[-1])
    assert_same(saved.tensors("head"), weights(tmp_path / "plain" / "last"))
    assert not torch.equal(found["project.weight"], seen[-1]["project.weight"])


def test_what_is_evaluated_is_what_is_saved(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path, eval_steps=8, ema=DECAY)
    reader = CacheReader(tiny_cache)
    wanted = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    (scores,) = score_pairs(
        load_head(str(tmp_path / "last")).head,
        reader,
        wanted.tolist(),
        [1.0],
        torch.device("cpu"),
        torch.float32,
    )
    (line,) = (line for line in metrics(tmp_path) if "eval_loss" in line)
    margin = 0.1 * float((scores.gains[:, 0] - scores.gains[:, 1]).mean())
    assert line["eval_rewards/margins"] == pytest.approx(margin, rel=1e-4)


TWO_EPOCHS: dict[str, Any] = {"eval_steps": 2, "ema": DECAY, "num_epochs": 2}


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_cache, folder, **TWO_EPOCHS)
    return folder


@pytest.mark.parametrize("steps", [1, 3, pytest.param(5, marks=pytest.mark.slow), 8])
def test_a_resumed_run_has_the_same_average(
    tiny_cache: Path, whole: Path, tmp_path: Path, steps: int
) -> None:
    with interrupted_after(steps):
        run(tiny_cache, tmp_path, **TWO_EPOCHS)
    run(tiny_cache, tmp_path, **TWO_EPOCHS, resume=True)
    for name in ("best", "last"):
        assert_same(weights(tmp_path / name), weights(whole / name))
    for part in ("head", "average", "optimizer"):
        assert_same(checkpoint(tmp_path).tensors(part), checkpoint(whole).tensors(part))
    assert metrics(tmp_path) == metrics(whole)


def test_without_decay_it_is_the_weights(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path, eval_steps=8, ema=0.0)
    assert_same(weights(tmp_path / "last"), checkpoint(tmp_path).tensors("head"))


def test_a_run_without_it_cannot_go_on_with_it(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(MismatchError, match=r"ema: begun with None, got 0\.9"):
        run(tiny_cache, finished, num_epochs=2, ema=0.9, resume=True)
    assert not list(finished.glob("checkpoints/*/average.safetensors"))


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ema: got 1.0, expected 0 or more and less than 1"):
        TrainOptions(cache="c", output_dir=Path("o"), ema=1.0)
