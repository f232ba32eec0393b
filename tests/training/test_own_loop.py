"""Training in a loop of one's own, with an own loss, and what is called on the way."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mav.cache_schema import CacheReader
from mav.cache_schema.errors import DataError, MismatchError, UsageError
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.head.pretrained import load_head
from mav.pipeline.loader.batch import Batch
from mav.pipeline.training.loss import Scores
from mav.pipeline.training.options import TrainOptions
from mav.pipeline.training.own.callbacks import TrainCallback
from mav.pipeline.training.own.loop import PreferenceScorer, cache_loader
from mav.pipeline.training.train import train
from tests.support.models.tiny import tiny_base
from tests.support.running.runs import options_of, run
from tests.support.steering.heads import same_weights


def dpo(scores: Scores, batch: Batch) -> Tensor:
    chosen, rejected = scores.gains
    return -F.logsigmoid(0.1 * (chosen - rejected))


def test_every_pair_comes_once_an_epoch_in_another_order(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    loader = cache_loader(reader, batch_size=3, split="all")
    epochs = [[tuple(batch.labels.tolist()) for batch in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    tokens = [Counter(token for labels in epoch for token in labels) for epoch in epochs]
    assert tokens[0] == tokens[1] and tokens[0].total() == reader.plan.response_length.sum()
    again = [
        tuple(batch.labels.tolist())
        for batch in cache_loader(tiny_cache, batch_size=3, split="all")
    ]
    assert again == epochs[0]
    assert isinstance(loader, torch.utils.data.DataLoader) and len(loader) == len(epochs[0])


def test_held_out_pairs_are_those_of_train(tiny_cache: Path) -> None:
    pairs = {
        split: sum(
            batch.pairs for batch in cache_loader(tiny_cache, split=split, eval_fraction=0.3)
        )
        for split in ("training", "held-out", "all")
    }
    assert pairs["training"] + pairs["held-out"] == pairs["all"] == 40
    assert min(pairs.values()) > 0
    with pytest.raises(DataError, match="none of its 40 pairs is held-out"):
        cache_loader(tiny_cache, split="held-out", eval_fraction=0.0)
    with pytest.raises(UsageError, match="shuffle: not an argument of cache_loader"):
        untyped: Any = cache_loader
        untyped(tiny_cache, shuffle=True)


def test_a_head_learns_in_five_lines_and_is_decoded_with(tiny_cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = AlignmentHead.for_cache(tiny_cache, expansion_size=24, dropout=0.0)
    model = PreferenceScorer(head, tiny_cache)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        for batch in cache_loader(tiny_cache, batch_size=8):
            loss = dpo(model(batch), batch).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2)) and losses[-1] < 0.6
    with MAVInference(head, tiny_base()) as mav:
        before = mav.score("How do I mend bread?", "No idea.", 1.0).total
    head.save_pretrained(tmp_path / "head")
    with MAVInference(str(tmp_path / "head"), tiny_base(), dtype="float32") as mav:
        assert mav.score("How do I mend bread?", "No idea.", 1.0).total == pytest.approx(before)


def test_scores_of_a_loop_are_those_of_training(tiny_cache: Path) -> None:
    head = AlignmentHead.for_cache(tiny_cache, head_type="unembedding").eval()
    torch.nn.init.normal_(head.project.weight, std=0.1)
    whole = PreferenceScorer(head, tiny_cache)
    sums: dict[int, float] = {}
    for size in (1, 40):
        loader = cache_loader(tiny_cache, batch_size=size, split="all")
        sums[size] = sum(float(whole(batch).gains[0].detach().sum()) for batch in loader)
    assert sums[1] == pytest.approx(sums[40], rel=1e-4)
    assert sums[1] != 0


def test_an_own_loss_that_is_dpo_trains_the_same_head(tiny_cache: Path, tmp_path: Path) -> None:
    one = run(tiny_cache, tmp_path / "named", objective="dpo", beta=0.1)
    options = options_of(tiny_cache, tmp_path / "own", objective="dpo", beta=0.1)
    other = train(options, loss=dpo)
    heads = [load_head(str(report.output_dir)) for report in (one, other)]
    assert same_weights(heads[0].head, heads[1].head)
    assert [head.origin.objective for head in heads] == ["dpo", "own loss dpo"]
    with pytest.raises(MismatchError, match="loss"):
        train(options_of(tiny_cache, tmp_path / "own", objective="dpo", beta=0.1, resume=True))


def test_an_own_loss_must_be_one_for_each_pair(tiny_cache: Path, tmp_path: Path) -> None:
    options = options_of(tiny_cache, tmp_path / "own")
    with pytest.raises(UsageError, match=r"loss: got \(\), expected a loss for each pair"):
        train(options, loss=lambda scores, batch: dpo(scores, batch).mean())


class Noting(TrainCallback):
    """Notes what it was called with."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int, Any]] = []

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        self.noted.append(("log", step, values["loss"]))

    def on_evaluate(self, step: int, values: Mapping[str, float]) -> None:
        self.noted.append(("evaluate", step, values["loss"]))

    def on_save(self, step: int, folder: Path, *, best: bool) -> None:
        assert (folder / "best" / "config.json").is_file()
        self.noted.append(("save", step, best))


def test_callbacks_are_called_with_what_is_logged(tiny_cache: Path, tmp_path: Path) -> None:
    noting = Noting()

    class Evaluations:
        on_evaluate = staticmethod(lambda step, values: seen.append(step))

    seen: list[int] = []
    given: Any = [noting, Evaluations()]
    options = options_of(tiny_cache, tmp_path / "run", eval_steps=2)
    report = train(options, callbacks=given)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    logged = [("log", line["step"], line["loss"]) for line in lines if "loss" in line]
    evaluated = [
        ("evaluate", line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line
    ]
    assert [note for note in noting.noted if note[0] == "log"] == logged
    assert [note for note in noting.noted if note[0] == "evaluate"] == evaluated
    assert seen == [step for _, step, _ in evaluated]
    saved = [(step, best) for event, step, best in noting.noted if event == "save"]
    assert [step for step, _ in saved] == seen
    assert (report.best_step, True) in saved
    events = [event for event, step, _ in noting.noted if step == seen[0]]
    assert events == ["log", "evaluate", "save"]


@pytest.mark.parametrize("wrong", [[object()], [Noting], 3])
def test_what_is_no_callback_is_refused(tiny_cache: Path, tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match="expected objects with on_log, on_evaluate, on_save"):
        train(options_of(tiny_cache, tmp_path / "run"), callbacks=wrong)


def test_names_of_runs_and_projects(tiny_cache: Path, tmp_path: Path) -> None:
    run(tiny_cache, tmp_path / "run", report_to="tensorboard", run_name="first")
    assert any((tmp_path / "run" / "first").iterdir())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"project": "p"}, "project: got 'p' with `report_to` tensorboard, which has no projects"),
        ({"run_name": "r", "report_to": "none"}, "run_name: got 'r', but `report_to` is none"),
    ]
    for wrong, told in refused:
        with pytest.raises(UsageError, match=told):
            TrainOptions(cache="c", output_dir="o", **wrong)
