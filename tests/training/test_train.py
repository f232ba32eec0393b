"""Training: what it learns, what it writes, and that a run can be interrupted anywhere."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import DataError, HeadError, MismatchError, UsageError
from mav.pipeline.evaluation.evaluate import evaluate
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.batch import Batch, CachedBase
from mav.pipeline.loader.dataset import CachedPreferenceDataset
from mav.pipeline.loader.sampler import StepLayout
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.train import TrainReport, train
from mav.pipeline.training.trainer import Trainer
from tests.support.logs import logged_messages
from tests.support.tiny import make_cache

FRACTION = 0.3
METRICS = {
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
    "squared_norm",
}


def run(cache: Path, folder: Path, **changes: Any) -> TrainReport:
    """Train a small head on the CPU: 32 pairs, 8 steps per epoch."""
    settings: dict[str, Any] = {
        "eval_fraction": FRACTION,
        "expansion_size": 16,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "bf16": False,
        "grad_accum": 2,
        "workers": 0,
        **changes,
    }
    options = TrainOptions(cache=cache, output_dir=folder, **settings)
    return train(options)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, without what a clock measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if "per_second" not in name}
        for line in lines
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = safetensors.torch.load_file(folder / "model.safetensors")
    return found


def checkpoint(folder: Path) -> Checkpoint:
    with logged_messages() as logged:
        found = newest_checkpoint(folder)
    assert found is not None and logged == []
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Interrupt training when this many steps are taken, as Ctrl-C does."""
    original = Trainer.step

    def step(trainer: Trainer, number: int, *rest: Any) -> float:
        if number == steps:
            raise KeyboardInterrupt
        return original(trainer, number, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", step)
        yield


@pytest.fixture(scope="module")
def finished(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that was never interrupted; read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    report = run(tiny_cache, folder, num_epochs=2, eval_steps=2)
    assert (report.output_dir, report.steps) == (folder, 16)
    assert (report.alignment_parameters, report.total_parameters) == (5628, 8732)
    return folder


def test_the_loss_falls(finished: Path) -> None:
    losses = [line["loss"] for line in metrics(finished) if "loss" in line]
    held_out = [line["eval_loss"] for line in metrics(finished) if "eval_loss" in line]
    assert losses[-1] < losses[0]
    assert held_out[-1] < 0.3 < held_out[0] < math.log(2)


def test_the_published_objective_is_learnt_too(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path / "run", objective="mav", num_epochs=4, eval_steps=8)
    held_out = [line["eval_loss"] for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert held_out == sorted(held_out, reverse=True)
    assert held_out[-1] < 0.7 * held_out[0]


def test_the_log_has_the_names_of_trl(finished: Path) -> None:
    lines = metrics(finished)
    training = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    assert {10, 16} <= {line["step"] for line in training}
    assert [line["step"] for line in held_out] == [2, 4, 6, 8, 10, 12, 14, 16]
    for line in training:
        assert line.keys() == METRICS | {"step", "epoch", "learning_rate", "grad_norm"}
    for line in held_out:
        assert line.keys() == {f"eval_{name}" for name in METRICS} | {"step", "epoch"}
        assert line["epoch"] == line["step"] / 8
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_tensorboard_gets_the_same_figures(finished: Path) -> None:
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    (events,) = finished.glob("**/events.out.tfevents.*")
    board = event_accumulator.EventAccumulator(str(events)).Reload()
    for name in ("loss", "eval_loss", "rewards/margins", "learning_rate"):
        logged = [(line["step"], line[name]) for line in metrics(finished) if name in line]
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [(step, pytest.approx(value)) for step, value in logged]


def test_heads_remember_what_they_were_trained_from(finished: Path, tiny_cache: Path) -> None:
    for name in ("best", "last"):
        stored = load_head(str(finished / name))
        assert stored.origin.manifest == CacheReader(tiny_cache).manifest
        assert (stored.origin.objective, stored.origin.beta) == ("dpo", 0.1)
        assert stored.origin.held_out_fraction == FRACTION
    assert load_head(str(finished / "last")).origin.steps == 16
    assert_same(
        weights(finished / "last"),
        checkpoint(finished).tensors("head"),
    )


def test_best_is_the_head_with_the_lowest_held_out_loss(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, heads = [0.5, 0.3, 0.4, 0.3], []

    def evaluated(trainer: Trainer, *_: Any) -> dict[str, float]:
        heads.append({name: t.clone() for name, t in trainer.weights().items()})
        return {name: losses[len(heads) - 1] for name in METRICS}

    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    report = run(tiny_cache, tmp_path / "run", eval_steps=2)
    assert report.best_step == 4
    assert report.evaluation["eval_loss"] == 0.3
    assert_same(weights(tmp_path / "run" / "best"), heads[1])
    assert_same(weights(tmp_path / "run" / "last"), heads[3])
    assert load_head(str(tmp_path / "run")).origin.steps == 4


def test_training_is_the_plain_loop(tiny_cache: Path, tmp_path: Path) -> None:
    """The same run, written out without accelerate, chunks or sums over micro-batches."""
    settings: dict[str, Any] = {
        "dropout": 0.0,
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "lambda_l2": 0.01,
        "num_epochs": 2,
        "warmup_steps": 3,
        "seed": 4,
    }
    run(tiny_cache, tmp_path, eval_steps=16, **settings)

    reader = CacheReader(tiny_cache)
    torch.manual_seed(4)
    config = HeadConfig(
        num_layers=3, pooled_size=32, expansion_size=16, vocab_size=300, dropout=0.0
    )
    head = AlignmentHead(config)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.1)
    unembedding = torch.from_numpy(reader.read_unembedding()["weight"])
    step, subset = 0, PairSubset(which="training", fraction=FRACTION)
    for epoch in range(2):
        shape = StepLayout(batch_size=4, grad_accum=1)
        for batch in CachedPreferenceDataset(tiny_cache, subset, shape, seed=4, epoch=epoch):
            vector = head(batch.states)
            base = batch.states[:, 2] @ unembedding.t()
            label = batch.labels.long()[:, None]
            logp, base_logp = (
                logits.log_softmax(-1).gather(1, label)[:, 0] for logits in (base + vector, base)
            )
            answers = (logp - base_logp).split(batch.offsets.diff().tolist())
            gains = torch.stack([answer.sum() for answer in answers]).view(-1, 2)
            lengths = batch.offsets.diff().view(-1, 2).sum(1).tolist()
            norms = torch.stack([part.mean() for part in (vector**2).sum(-1).split(lengths)])
            margin = gains[:, 0] - gains[:, 1]
            loss = torch.nn.functional.softplus(-0.1 * margin) + 0.01 * norms
            optimizer.zero_grad()
            loss.mean().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(head.parameters(), 0.05)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * ((step + 1) / 3 if step < 3 else (16 - step) / 13)
            optimizer.step()
            step += 1
    assert step == 16
    found = weights(tmp_path / "last")
    for name, parameter in head.state_dict().items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("batch_size", "grad_accum"), [(4, 1), (1, 4)])
def test_micro_batches_change_nothing_but_rounding(
    tiny_cache: Path, tmp_path: Path, batch_size: int, grad_accum: int
) -> None:
    common: dict[str, Any] = {"dropout": 0.0, "eval_steps": 8}
    run(tiny_cache, tmp_path / "one", batch_size=2, grad_accum=2, **common)
    run(tiny_cache, tmp_path / "two", batch_size=batch_size, grad_accum=grad_accum, **common)
    one, two = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module", params=[1, 2, 5, 8, 11, 15])
def resumed(
    request: pytest.FixtureRequest, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run of `finished`, interrupted after some steps and gone on with."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 2}
    with interrupted_after(request.param):
        run(tiny_cache, folder, **settings)
    with logged_messages() as logged:
        report = run(tiny_cache, folder, **settings, resume=True)
    assert report.steps == 16
    checkpointed = request.param // 2 * 2
    assert (f"Going on after step {checkpointed} of 16" in logged) == (checkpointed > 0)
    return folder


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    resumed: Path, finished: Path
) -> None:
    for name in ("best", "last"):
        assert_same(weights(resumed / name), weights(finished / name))
    one, other = checkpoint(resumed), checkpoint(finished)
    assert one.state == other.state
    assert_same(one.tensors("optimizer"), other.tensors("optimizer"))


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(resumed: Path, finished: Path) -> None:
    assert metrics(resumed) == metrics(finished)


def test_a_run_killed_while_it_saves_is_resumed(tiny_cache: Path, tmp_path: Path) -> None:
    """Lines of the log after the checkpoint, and half a line at its end, are taken out."""
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 10}
    run(tiny_cache, tmp_path / "whole", **settings)
    saves = []

    def save(*arguments: Any) -> None:
        saves.append(arguments)
        if len(saves) == 2:
            raise KeyboardInterrupt
        save_checkpoint(*arguments)

    killed = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mav.pipeline.training.train.save_checkpoint", save)
        run(tiny_cache, killed, **settings)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "eval_lo')
    run(tiny_cache, killed, **settings, resume=True)
    assert_same(weights(killed / "last"), weights(tmp_path / "whole" / "last"))
    assert metrics(killed) == metrics(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_complete_run_is_left_as_it_is(
    finished: Path, tiny_cache: Path, messages: list[str]
) -> None:
    before = contents(finished)
    report = run(tiny_cache, finished, num_epochs=2, eval_steps=2, resume=True)
    assert contents(finished) == before
    assert any(line.endswith("trained already, left as it is") for line in messages)
    assert (report.steps, report.evaluation) == (16, {})
    assert report.best_step == max(
        line["step"] for line in metrics(finished) if line.get("eval_loss") == best_loss(finished)
    )


def best_loss(folder: Path) -> float:
    return min(line["eval_loss"] for line in metrics(folder) if "eval_loss" in line)


def test_a_folder_with_a_run_is_not_written_over(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a training run already\. Add --resume"):
        run(tiny_cache, finished, num_epochs=2, eval_steps=2)


def test_resume_begins_a_run_where_there_is_none(tiny_cache: Path, tmp_path: Path) -> None:
    assert run(tiny_cache, tmp_path / "new", eval_steps=8, resume=True).steps == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_fraction", 0.2),
        ("expansion_size", 8),
        ("dropout", 0.2),
        ("objective", "mav"),
        ("beta", 0.2),
        ("lambda_l2", 0.0),
        ("learning_rate", 1e-3),
        ("weight_decay", 0.0),
        ("max_grad_norm", 2.0),
        ("num_epochs", 3),
        ("warmup_steps", 0),
        ("seed", 1),
    ],
)
def test_a_run_cannot_go_on_with_other_options(
    finished: Path, tiny_cache: Path, name: str, value: object
) -> None:
    before = contents(finished)
    changed: dict[str, Any] = {"num_epochs": 2, name: value}
    flag = "--" + name.replace("_", "-")
    with pytest.raises(MismatchError, match=rf"other settings:\n  - {flag}: begun with .*{value}"):
        run(tiny_cache, finished, resume=True, **changed)
    assert contents(finished) == before


def test_every_changed_option_is_named(finished: Path, tiny_cache: Path) -> None:
    with pytest.raises(MismatchError) as caught:
        run(tiny_cache, finished, resume=True, num_epochs=1, seed=3, beta=0.3)
    named = [line.split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert named == ["  - --beta", "  - --num-epochs", "  - --seed"]


def test_a_run_may_be_moved_and_evaluated_more_often(
    tiny_cache: Path, tmp_path: Path, finished: Path
) -> None:
    with interrupted_after(5):
        run(tiny_cache, tmp_path / "old", num_epochs=2, eval_steps=4)
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.copytree(tiny_cache, tmp_path / "cache")
    run(tmp_path / "cache", tmp_path / "new", num_epochs=2, eval_steps=1, resume=True)
    assert_same(weights(tmp_path / "new" / "last"), weights(finished / "last"))


@pytest.mark.parametrize(
    "other",
    [
        {"pairs": 39},
        {"layer_selection": "0,2,4"},
        {"block_tokens": 512},
        {"dtype": "bfloat16"},
        {"logits": "topk", "top_k": 8},
    ],
    ids=str,
)
def test_a_run_cannot_go_on_with_another_cache(
    tiny_cache: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """Whatever decides a weight or the order of pairs; where the cache lies does not."""
    cache = make_cache(tmp_path / "other", **other)
    with interrupted_after(3):
        run(tiny_cache, tmp_path / "run", eval_steps=2)
    with pytest.raises(MismatchError, match=r"cache: another cache"):
        run(cache, tmp_path / "run", eval_steps=2, resume=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 4}, r"pairs in a step \(.*\): begun with 4, got 8"),
        ({"grad_accum": 1}, r"pairs in a step \(.*\): begun with 4, got 2"),
        ({"batch_size": None, "batch_tokens": 64}, r"--batch-tokens: begun with None, got 64"),
    ],
    ids=str,
)
def test_a_run_cannot_go_on_with_other_steps(
    finished: Path, tiny_cache: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(MismatchError, match=told):
        run(tiny_cache, finished, resume=True, num_epochs=2, **changes)


def test_a_step_may_be_shared_out_otherwise_on_resuming(tiny_cache: Path, tmp_path: Path) -> None:
    """What counts is the pairs of a step; without dropout even the weights are the same."""
    settings: dict[str, Any] = {"eval_steps": 2, "dropout": 0.0}
    run(tiny_cache, tmp_path / "whole", **settings)
    with interrupted_after(3):
        run(tiny_cache, tmp_path / "run", **settings)
    run(tiny_cache, tmp_path / "run", **settings, resume=True, batch_size=4, grad_accum=1)
    found, expected = weights(tmp_path / "run" / "last"), weights(tmp_path / "whole" / "last")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["state.json", "head.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_passed_over(
    tiny_cache: Path, tmp_path: Path, finished: Path, name: str, messages: list[str]
) -> None:
    settings: dict[str, Any] = {"num_epochs": 2, "eval_steps": 2}
    with interrupted_after(7):
        run(tiny_cache, tmp_path, **settings)
    file = checkpoint(tmp_path).folder / name
    file.write_bytes(file.read_bytes()[:100])
    messages.clear()
    run(tiny_cache, tmp_path, **settings, resume=True)
    assert any("damaged" in line for line in messages)
    assert "Going on after step 4 of 16" in messages
    assert_same(weights(tmp_path / "last"), weights(finished / "last"))
    assert metrics(tmp_path) == metrics(finished)


def test_a_run_without_a_sound_checkpoint_is_refused(tiny_cache: Path, tmp_path: Path) -> None:
    with interrupted_after(7):
        run(tiny_cache, tmp_path, eval_steps=2)
    for file in tmp_path.glob("checkpoints/*/state.json"):
        file.write_text("{")
    with pytest.raises(HeadError, match=r"[Rr]emove .* to start over"):
        run(tiny_cache, tmp_path, eval_steps=2, resume=True)


def test_held_out_pairs_cannot_be_taken_into_training_on_resuming(
    tiny_cache: Path, tmp_path: Path, small_cache: Path
) -> None:
    """With a cache of its own to evaluate on, nothing is held out of the training cache."""
    with interrupted_after(3):
        run(tiny_cache, tmp_path, eval_steps=2)
    with pytest.raises(MismatchError, match=r"--eval-(cache|fraction)"):
        run(tiny_cache, tmp_path, eval_steps=2, eval_cache=small_cache, resume=True)


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 12 pairs from the base of `tiny_cache`."""
    return make_cache(tmp_path_factory.mktemp("small"), pairs=12)


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
    held_out = in_subset(reader.prompt_id, PairSubset(which="held-out", fraction=FRACTION))
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
    found = evaluate(str(tmp_path / "last"), small_cache, [1.0], which="all", device="cpu")
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
    with pytest.raises(DataError, match=r"--eval-fraction 0\.9999 holds out all of its 40 pairs"):
        run(tiny_cache, tmp_path, eval_fraction=0.9999)


def test_seeds_decide_a_run(tiny_cache: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        run(tiny_cache, tmp_path / name, seed=seed, eval_steps=8)
    one, again, two = (weights(tmp_path / name / "last") for name in ("one", "again", "two"))
    assert_same(one, again)
    assert not torch.equal(one["project.weight"], two["project.weight"])


@pytest.mark.parametrize("logits", ["dense", "topk"])
def test_any_encoding_can_be_trained_from(tmp_path: Path, logits: str) -> None:
    cache = make_cache(tmp_path / "made", pairs=16, logits=logits, top_k=16)
    run(cache, tmp_path / "run", num_epochs=4, eval_steps=4)
    held_out = [line["eval_loss"] for line in metrics(tmp_path / "run") if "eval_loss" in line]
    assert held_out[-1] < held_out[0] < math.log(2)


def test_bfloat16_follows_float32_in_one_process(tiny_cache: Path, tmp_path: Path) -> None:
    """From Python, runs of either precision may follow each other."""
    losses = []
    for bf16 in (False, True):
        folder = tmp_path / str(bf16)
        run(tiny_cache, folder, bf16=bf16, dropout=0.0, eval_steps=8)
        losses.append(metrics(folder)[-1]["eval_loss"])
        assert {tensor.dtype for tensor in weights(folder / "last").values()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_learning_rate_is_logged(finished: Path) -> None:
    rates = {line["step"]: line["learning_rate"] for line in metrics(finished) if "loss" in line}
    # A tenth of 16 steps warms up, that is one; steps 10 and 16 are those numbered 9 and 15.
    assert (rates[10], rates[16]) == pytest.approx((1e-2 * 7 / 15, 1e-2 * 1 / 15))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expansion_size": 0}, r"expansion_size: got 0, expected at least 1"),
        ({"num_epochs": 0}, r"num_epochs: got 0"),
        ({"batch_size": 0}, r"batch_size: got 0"),
        ({"grad_accum": -1}, r"grad_accum: got -1"),
        ({"eval_steps": 0}, r"eval_steps: got 0"),
        ({"beta": 0.0}, r"beta: got 0.0, expected more than 0"),
        ({"beta": math.nan}, r"beta: got nan"),
        ({"learning_rate": -1e-4}, r"learning_rate: got -0.0001"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm: got 0.0"),
        ({"lambda_l2": -0.1}, r"lambda_l2: got -0.1, expected at least 0"),
        ({"lambda_l2": math.nan}, r"lambda_l2: got nan"),
        ({"weight_decay": -1.0}, r"weight_decay: got -1.0"),
        ({"warmup_steps": -1}, r"warmup_steps: got -1"),
        ({"seed": -1}, r"seed: got -1"),
        ({"dropout": 1.0}, r"dropout: got 1.0, expected 0 or more and less than 1"),
        ({"eval_fraction": -0.1}, r"eval_fraction: got -0.1"),
        ({"eval_fraction": 1.0}, r"eval_fraction: got 1.0"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainOptions(cache=Path("c"), output_dir=Path("o"), **changes)


ALONE = """
import sys
from pathlib import Path
from mav.pipeline.training.train import train
from mav.pipeline.training.options import TrainOptions

cache, folder = map(Path, sys.argv[1:])
options = TrainOptions(
    cache=cache, output_dir=folder, expansion_size=16, bf16=False, batch_size=8, eval_fraction=0.3
)
report = train(options)
found = {"transformers", "tokenizers", "datasets", "mav.pipeline.base.model"} & set(sys.modules)
print(report.steps, sorted(found))
"""


def test_the_base_model_is_absent(tiny_cache: Path, tmp_path: Path) -> None:
    """With a process that reads ahead, as `mav train` has it."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tiny_cache, tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 []\n"
