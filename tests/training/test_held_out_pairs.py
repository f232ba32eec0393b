"""What a run is evaluated on."""

from pathlib import Path
from typing import Any

import pytest

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import DataError, MismatchError
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.evaluation.options import EvaluateOptions
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.training.trainer import Trainer
from tests.support.models.tiny import make_cache
from tests.support.running.runs import assert_same, metrics, run, weights
from tests.support.steering.heads import FRACTION


def test_held_out_pairs_are_evaluated_on_and_never_trained_on(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_states(batches: Any) -> list[bytes]:
        return [
            batch.states[token].numpy().tobytes()
            for batch in batches
            for token in batch.offsets[:-1:2]
        ]

    def step(trainer: Trainer, number: int, rate: float, batches: list[Batch], *rest: Any) -> float:
        trained.extend(first_states(batches))
        return original_step(trainer, number, rate, batches, *rest)

    def evaluated(trainer: Trainer, batches: Any, base: CachedBase) -> dict[str, float]:
        held = list(batches)
        evaluations.append(sorted(first_states(held)))
        return original_evaluate(trainer, held, base)

    trained: list[bytes] = []
    evaluations: list[list[bytes]] = []
    original_step, original_evaluate = Trainer.step, Trainer.evaluate
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    run(tiny_cache, tmp_path, num_epochs=2, eval_steps=8)

    reader = CacheReader(tiny_cache)
    held_out = in_subset(reader.prompt_id, PairSubset(split="held-out", fraction=FRACTION))
    states: dict[bool, list[bytes]] = {True: [], False: []}
    for number in range(reader.plan.blocks):
        block = reader.read_block(number)
        for index, pair in enumerate(block.pairs):
            first = block.rows["hidden_states"][block.offsets[2 * index]]
            states[bool(held_out[pair])].append(first.tobytes())
    assert len(states[True]) == 8
    assert sorted(trained) == sorted(2 * states[False])
    assert evaluations == [sorted(states[True])] * 2


def test_another_cache_can_be_evaluated_on(
    tiny_cache: Path, small_cache: Path, tmp_path: Path
) -> None:
    report = run(tiny_cache, tmp_path, eval_cache=small_cache, eval_steps=10)
    assert report.steps == 10  # All 40 pairs are trained on.
    found = evaluate(
        EvaluateOptions(
            head=str(tmp_path / "last"), cache=small_cache, alphas=[1.0], pairs="all", device="cpu"
        )
    )
    (result,) = found.results
    assert report.evaluation["eval_rewards/margins"] == pytest.approx(0.1 * result.margin, rel=1e-4)
    assert report.evaluation["eval_rewards/accuracies"] == result.reward_accuracy
    assert report.evaluation["eval_logps/accuracies"] == result.logp_accuracy
    assert load_head(str(tmp_path / "last")).origin.held_out_fraction == 0


def test_a_cache_with_other_states_cannot_be_evaluated_on(tiny_cache: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other", pairs=8, layer_selection="0,2,4")
    with pytest.raises(MismatchError, match=r"differ in layers: \(1, 2, 4\) and \(0, 2, 4\)"):
        run(tiny_cache, tmp_path / "run", eval_cache=other)
    assert not (tmp_path / "run").exists()


def test_nothing_held_out_makes_the_last_head_the_best(tiny_cache: Path, tmp_path: Path) -> None:
    report = run(tiny_cache, tmp_path, eval_fraction=0.0, eval_steps=4)
    assert (report.steps, report.best_step, report.evaluation) == (10, None, {})
    assert_same(weights(tmp_path / "best"), weights(tmp_path / "last"))
    assert not any("eval_loss" in line for line in metrics(tmp_path))


def test_holding_out_everything_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`eval_fraction` 0\.9999 holds out all of its 40 pairs"):
        run(tiny_cache, tmp_path, eval_fraction=0.9999)
