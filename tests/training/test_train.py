"""Training: what it learns and what it writes."""

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import UsageError
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.dataset import CachedPreferenceDataset
from mav.pipeline.loader.sampler import EpochOrder, StepLayout, order_epoch
from mav.pipeline.loader.split import PairSubset, in_subset
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.trainer import HEAD, Trainer
from tests.support.models.tiny import make_cache
from tests.support.running.runs import (
    METRICS,
    OF_EVALUATIONS,
    assert_same,
    checkpoint,
    metrics,
    run,
    weights,
)
from tests.support.steering.heads import FRACTION, KINDS, sizes_of


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
        assert line.keys() == {f"eval_{name}" for name in OF_EVALUATIONS} | {"step", "epoch"}
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
        heads.append({name: t.clone() for name, t in trainer.state()[HEAD].items()})
        return {name: losses[len(heads) - 1] for name in METRICS}

    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    report = run(tiny_cache, tmp_path / "run", eval_steps=2)
    assert report.best_step == 4
    assert report.evaluation["eval_loss"] == 0.3
    assert_same(weights(tmp_path / "run" / "best"), heads[1])
    assert_same(weights(tmp_path / "run" / "last"), heads[3])
    assert load_head(str(tmp_path / "run")).origin.steps == 4


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_plain_loop(tiny_cache: Path, tmp_path: Path, kind: HeadKind) -> None:
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
    run(tiny_cache, tmp_path, eval_steps=16, head_type=kind, **settings)

    reader = CacheReader(tiny_cache)
    torch.manual_seed(4)
    head = AlignmentHead(sizes_of(kind, inner=16, dropout=0.0))
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.1)
    unembedding = torch.from_numpy(reader.read_unembedding()["weight"])
    step, layout = 0, StepLayout(batch_size=4, grad_accum=1)
    wanted = in_subset(reader.prompt_id, PairSubset(split="training", fraction=FRACTION))
    for epoch in range(2):
        for batch in CachedPreferenceDataset(
            reader, order_epoch(reader.plan, wanted, layout, seed=4, epoch=epoch)
        ):
            vector = head(batch.states)
            if kind == "unembedding":
                vector = vector @ unembedding.t()
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


def test_seeds_decide_a_run(tiny_cache: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        run(tiny_cache, tmp_path / name, seed=seed, eval_steps=8)
    one, again, two = (weights(tmp_path / name / "last") for name in ("one", "again", "two"))
    assert_same(one, again)
    assert not torch.equal(one["project.weight"], two["project.weight"])


def test_the_cache_is_opened_once_and_each_order_computed_once(
    tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    ordered: list[int] = []
    original = CacheReader.__init__

    def opening(reader: CacheReader, location: Path) -> None:
        opened.append(location)
        original(reader, location)

    def ordering(*arguments: Any, **options: Any) -> EpochOrder:
        ordered.append(options["epoch"])
        return order_epoch(*arguments, **options)

    monkeypatch.setattr(CacheReader, "__init__", opening)
    monkeypatch.setattr("mav.pipeline.loader.sampler.order_epoch", ordering)
    monkeypatch.setattr("mav.pipeline.training.data.order_epoch", ordering)
    run(tiny_cache, tmp_path / "run", num_epochs=2, eval_steps=4)
    assert opened == [tiny_cache]
    assert sorted(ordered) == [0, 0, 1]  # the pairs held out have an order of their own


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
        ({"lambda_kl": -1.0}, r"lambda_kl: got -1.0, expected at least 0"),
        ({"lambda_sft": math.inf}, r"lambda_sft: got inf"),
        ({"ld_alpha": 1.1}, r"ld_alpha: got 1.1, expected 0 to 1"),
        ({"keep_by": "reward"}, r"keep_by: got 'reward', expected one of loss, accuracy, scaled"),
        ({"weight_decay": -1.0}, r"weight_decay: got -1.0"),
        ({"warmup_steps": -1}, r"warmup_steps: got -1"),
        ({"seed": -1}, r"seed: got -1"),
        ({"dropout": 1.0}, r"dropout: got 1.0, expected 0 or more and less than 1"),
        ({"eval_fraction": -0.1}, r"eval_fraction: got -0.1"),
        ({"eval_fraction": 1.0}, r"eval_fraction: got 1.0"),
        ({"head_type": "linear"}, r"head_type: got 'linear', expected one of mlp, unembedding, "),
        ({"label_smoothing": 0.2}, r"label_smoothing: got 0.2 with `objective` dpo, expected none"),
        ({"objective": "robust", "label_smoothing": 0.5}, r"label_smoothing: got 0.5"),
        ({"simpo_gamma": 1.0}, r"simpo_gamma: got 1.0 with `objective` dpo, .*it is of simpo"),
        ({"rank": 8}, r"rank: got 8 with `head_type` mlp, expected none; it is a size of unemb"),
        (
            {"head_type": "bottleneck", "expansion_size": 8},
            r"expansion_size: got 8 with `head_type` bottleneck, .*it is a size of mlp",
        ),
        ({"head_type": "unembedding", "rank": 0}, r"rank: got 0, expected at least 1"),
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


def test_the_base_model_is_absent(tiny_cache: Path, tmp_path: Path, warm_programs: Path) -> None:
    """With a process that reads ahead, as `mav train` has it."""
    done = subprocess.run(
        [warm_programs / "early-python", "-c", ALONE, tiny_cache, tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 []\n"
