"""The benchmark's way with the base in the loop trains what training from the cache trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import in_loop
from benchmarks.in_loop_training import InLoopTrainer, PaddedAnswers, pad_answers
from mav.cache_schema.reader import CacheReader
from mav.pipeline.base.model import BaseModel
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import CachedBase
from mav.pipeline.training.loss import PreferenceModel, Scores
from mav.pipeline.training.objectives import Objective
from mav.pipeline.training.options import TrainOptions
from tests.support.models.tiny import HIDDEN, save_base, tiny_base, write_rows
from tests.support.steering.heads import random_head
from tests.support.steering.live import cached_pairs, relative, whole_cache

CPU = torch.device("cpu")
LENGTH = 128
PAIRS = 40


def from_cache(root: Path, head: AlignmentHead, objective: Objective) -> tuple[Scores, Any]:
    reader = CacheReader(root)
    batch, _ = whole_cache(reader)
    scores = PreferenceModel(head, bf16=False)(batch, CachedBase(reader, CPU).logits(batch))
    return scores, scores.pair_sum_loss(objective, batch) / batch.pairs


def with_base_in_loop(
    root: Path, base: BaseModel, head: AlignmentHead, **options: Any
) -> tuple[InLoopTrainer, PaddedAnswers, PaddedAnswers]:
    reader = CacheReader(root)
    settings = TrainOptions(cache=root, output_dir=root, bf16=False, **options)
    trainer = InLoopTrainer(settings, base, reader.manifest.states.layers, head)
    pairs = cached_pairs(reader, base)
    chosen, rejected = (
        pad_answers(pairs, range(len(pairs)), answer, length=LENGTH, padding=0, device=CPU)
        for answer in ("chosen", "rejected")
    )
    return trainer, chosen, rejected


def test_log_probabilities_of_answers(tiny_cache: Path) -> None:
    objective = Objective(name="mav", beta=0.1, lambda_l2=0.0)
    want, _ = from_cache(tiny_cache, random_head(HIDDEN), objective)
    trainer, chosen, rejected = with_base_in_loop(tiny_cache, tiny_base(), random_head(HIDDEN))
    for answers, sums in ((chosen, want.chosen_logps), (rejected, want.rejected_logps)):
        assert answers.input_ids.shape == (PAIRS, LENGTH)
        logp, _ = trainer.token_logprobs(answers)
        got = torch.where(answers.response_mask, logp, 0).sum(-1)
        torch.testing.assert_close(got, sums, rtol=1e-4, atol=1e-4)


def test_loss_and_gradient(tiny_cache: Path) -> None:
    """The prompt's log-probabilities leave the difference of the two answers."""
    cached, live = random_head(HIDDEN), random_head(HIDDEN)
    _, want = from_cache(tiny_cache, cached, Objective(name="mav", beta=0.1, lambda_l2=0.0))
    trainer, chosen, rejected = with_base_in_loop(
        tiny_cache, tiny_base(), live, objective="mav", lambda_l2=0.0
    )
    got = trainer.loss(chosen, rejected)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.autograd.backward([want, got])
    for (place, mine), theirs in zip(cached.named_parameters(), live.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert relative(mine.grad, theirs.grad) < 1e-4, place


def test_a_step_changes_the_head_and_not_the_base(tiny_cache: Path) -> None:
    base, head = tiny_base(), random_head(HIDDEN)
    before = [parameter.clone() for parameter in (*base.model.parameters(), *head.parameters())]
    trainer, chosen, rejected = with_base_in_loop(tiny_cache, base, head, lambda_l2=0.01)
    trainer.step(chosen, rejected)
    after = [*base.model.parameters(), *head.parameters()]
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    heads = len(list(head.parameters()))
    assert changed == [False] * (len(changed) - heads) + [True] * heads


def run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    in_loop.main(
        [
            *("--base-model", str(folder / "base"), "--dataset", str(folder / "pairs.jsonl")),
            *("--max-length", str(LENGTH), "--pooled-size", str(HIDDEN), "--expansion-size", "24"),
            *("--batch-size", "4", "--steps", "2", "--workers", "0"),
            *("--work", str(folder / "work"), *options),
        ]
    )
    return capsys.readouterr().out


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_base(tiny_base(), tmp_path / "base")
    write_rows(tmp_path / "pairs.jsonl", 10)
    found = json.loads(run(tmp_path, capsys, "--json"))
    rate, other = found["cached_pairs_per_second"], found["in_loop_pairs_per_second"]
    assert found["pairs_over_in_loop"] == pytest.approx(rate / other)
    assert found["pairs_over_in_loop_with_extraction"] < found["pairs_over_in_loop"]
    assert found["extraction_seconds"] >= found["extraction_forward_seconds"] > 0
    assert (found["pairs"], found["cached_pairs_measured"], found["in_loop_pairs_measured"]) == (
        10,
        20,
        8,
    )
    assert found["settings"]["max_length"] == LENGTH
    assert found["torch_threads"] == torch.get_num_threads() and found["device_name"]
    # The cache is kept, with the time it took.
    again = run(tmp_path, capsys)
    assert "from the cache" in again and "not measured" not in again


def test_error_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such file"):
        in_loop.main(
            [
                *("--base-model", str(tmp_path / "none.gguf"), "--work", str(tmp_path)),
                *("--dataset", str(tmp_path / "pairs.jsonl")),
            ]
        )
