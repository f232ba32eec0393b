"""The moving average of the weights, which is what is evaluated and saved."""

from pathlib import Path
from types import SimpleNamespace
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
from tests.support.running.runs import (
    assert_same,
    checkpoint,
    interrupted_after,
    metrics,
    run,
    weights,
)
from tests.support.steering.heads import FRACTION, KINDS

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


@pytest.mark.parametrize("kind", KINDS)
def test_bema_is_an_average_and_what_the_weights_are_ahead_of_the_first(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: HeadKind
) -> None:
    seen = recorded(monkeypatch)
    run(tiny_cache, tmp_path, head_type=kind, eval_steps=3, ema="bema")
    start = {name: first.double() for name, first in seen[0].items()}
    ema = start
    for steps, now in enumerate(seen[1:], 1):
        share = (10 + steps) ** -0.5
        ema = {name: (1 - share) * ema[name] + share * now[name] for name in ema}
    ahead = (10 + len(seen) - 1) ** -0.2
    found = weights(tmp_path / "last")
    for name, average in ema.items():
        expected = average + ahead * (seen[-1][name] - start[name])
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-7)
    saved = checkpoint(tmp_path)
    assert_same(saved.tensors("average"), found)
    assert_same(saved.tensors("start"), seen[0])
    assert_same(saved.tensors("head"), seen[-1])


def test_bema_is_trls(tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TRL is installed, its callback gets the same weights, step by step."""
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    seen = recorded(monkeypatch)
    run(tiny_cache, tmp_path, eval_steps=3, ema="bema")
    names = sorted(seen[0])
    theirs = callbacks.BEMACallback(update_freq=1)
    running = torch.nn.ParameterList([seen[0][name].clone() for name in names])
    theirs.running_model = running.requires_grad_(False)
    theirs.theta0_params = [seen[0][name].clone() for name in names]
    theirs.ema_params = [seen[0][name].clone() for name in names]
    for steps, now in enumerate(seen[1:], 1):
        theirs.thetat_params = [now[name] for name in names]
        theirs.on_step_end(None, SimpleNamespace(global_step=steps), None, None)
    assert_same(weights(tmp_path / "last"), dict(zip(names, running, strict=True)))


@pytest.mark.parametrize("ema", [DECAY, "bema"])
def test_what_is_evaluated_is_what_is_saved(tiny_cache: Path, tmp_path: Path, ema: Any) -> None:
    run(tiny_cache, tmp_path, eval_steps=8, ema=ema)
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


TWO_EPOCHS: dict[str, Any] = {"eval_steps": 2, "num_epochs": 2}


@pytest.fixture(scope="module", params=[DECAY, "bema"])
def ema(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def whole(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory, ema: Any) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(tiny_cache, folder, **TWO_EPOCHS, ema=ema)
    return folder


@pytest.mark.parametrize("steps", [1, 3, pytest.param(5, marks=pytest.mark.slow), 8])
def test_a_resumed_run_has_the_same_average(
    tiny_cache: Path, whole: Path, tmp_path: Path, steps: int, ema: Any
) -> None:
    with interrupted_after(steps):
        run(tiny_cache, tmp_path, **TWO_EPOCHS, ema=ema)
    run(tiny_cache, tmp_path, **TWO_EPOCHS, ema=ema, resume=True)
    for name in ("best", "last"):
        assert_same(weights(tmp_path / name), weights(whole / name))
    others = ("ema", "start") if ema == "bema" else ()
    for part in ("head", "average", "optimizer", *others):
        assert_same(checkpoint(tmp_path).tensors(part), checkpoint(whole).tensors(part))
    assert metrics(tmp_path) == metrics(whole)


def test_without_decay_it_is_the_weights(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path, eval_steps=8, ema=0.0)
    assert_same(weights(tmp_path / "last"), checkpoint(tmp_path).tensors("head"))


def test_a_run_without_it_cannot_go_on_with_it(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(MismatchError, match=r"ema: begun with None, got 0\.9"):
        run(tiny_cache, finished, num_epochs=2, ema=0.9, resume=True)
    assert not list(finished.glob("checkpoints/*/average.safetensors"))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (1.0, "0 or more and less than 1, or bema"),
        ("sema", "a number or bema"),
        (True, "a number or bema"),
    ],
)
def test_what_is_no_average_is_refused(wrong: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=f"ema: got {wrong!r}, expected {expected}"):
        TrainOptions(cache="c", output_dir=Path("o"), ema=wrong)
    assert TrainOptions(cache="c", output_dir=Path("o"), ema="bema").ema == "bema"
