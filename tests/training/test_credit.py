"""Credit of tokens: returns, the two linear models, and what a head learns from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.loader.batch import Batch
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.training.credit import TokenCredit, fit_credit, returns
from mav.pipeline.training.loss import Scores
from mav.pipeline.training.objectives import Objective
from mav.pipeline.training.options import TrainOptions
from tests.support.running.logs import logged_messages
from tests.support.running.runs import (
    assert_same,
    checkpoint,
    interrupted_after,
    metrics,
    run,
    weights,
)
from tests.support.steering.heads import KINDS

CPU = torch.device("cpu")


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("lengths", [[1, 1], [5, 1, 8, 3], [2, 17, 1, 1]])
def test_returns_are_sums_of_what_follows_in_the_response(
    discount: float, lengths: list[int]
) -> None:
    torch.manual_seed(len(lengths))
    values = torch.randn(sum(lengths), dtype=torch.float64)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    found = returns(values, offsets, discount)
    expected = torch.zeros_like(values)
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for place in reversed(range(start, stop - 1)):
            expected[place] = values[place + 1] + discount * expected[place + 1]
    torch.testing.assert_close(found, expected)


def batches_of(pairs: int, width: int = 6, seed: int = 0, noise: float = 1.0) -> list[Batch]:
    """Layer 1 of three holds, in dimension 2, what chosen responses have more of."""
    torch.manual_seed(seed)
    made = []
    for first in range(0, pairs, 5):
        count = min(5, pairs - first)
        lengths = torch.randint(1, 9, (2 * count,))
        states = torch.randn(int(lengths.sum()), 3, width) * noise
        response = torch.arange(2 * count).repeat_interleave(lengths)
        states[:, 1, 2] += 3.0 * (response % 2 == 0)
        states[:, 1, 2] *= 7.0  # in units of its own
        states[:, :, 5] = 1.25  # says nothing
        rows = {"hidden_states": states.bfloat16(), "labels": torch.zeros(len(states))}
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        made.append(Batch(rows=rows, offsets=offsets, step_pairs=count))
    return made


def fitted(batches: list[Batch], discount: float = 0.5) -> TokenCredit:
    def stream() -> Iterator[Batch]:
        yield from batches

    return fit_credit(stream, discount, CPU)


def test_the_layer_and_the_direction_that_tell_chosen_from_rejected_are_found() -> None:
    credit = fitted(batches_of(80))
    assert credit.layer == 1
    assert credit.accuracy > 0.95
    weighed = credit.value.abs() * torch.tensor([1, 1, 7, 1, 1, 1])
    assert credit.value[2] > 0 and weighed[2] > 3 * weighed[[0, 1, 3, 4]].max()
    assert credit.value[5] == 0 and credit.baseline[5] == 0
    again = fitted(batches_of(80))
    assert torch.equal(again.value, credit.value) and torch.equal(again.baseline, credit.baseline)


def test_credit_is_what_the_baseline_leaves_of_returns_in_its_own_deviation() -> None:
    batches = batches_of(80, noise=0.5)
    credit = fitted(batches, discount=0.9)
    every = torch.cat([credit.of(batch) for batch in batches])
    assert every.dtype == torch.float32
    assert abs(float(every.mean())) < 0.02 and float(every.square().mean()) == pytest.approx(
        1, abs=0.01
    )
    # Least squares leaves nothing that goes with the states.
    states = torch.cat([batch.states[:, 1].float() for batch in batches])
    varied = states[:, :5] - states[:, :5].mean(0)
    together = (varied * every[:, None]).mean(0) / varied.std(0)
    assert float(together.abs().max()) < 0.03
    # And by hand, for one token.
    batch = batches[0]
    states = batch.states[:, 1].float()
    stop = int(batch.offsets[1])
    values = states @ credit.value + credit.value_offset
    first = sum(0.9**k * float(values[1 + k]) for k in range(stop - 1))
    first -= float(states[0] @ credit.baseline) + credit.baseline_offset
    assert float(credit.of(batch)[0]) == pytest.approx(first / credit.scale, rel=1e-4, abs=1e-5)


def test_too_few_pairs_and_states_that_are_all_alike_are_refused() -> None:
    with pytest.raises(DataError, match=r"got 15 pairs to train on, expected 16 or more"):
        fitted(batches_of(15))
    batches = batches_of(20)
    for batch in batches:
        batch.rows["hidden_states"] = torch.ones_like(batch.states)
    with pytest.raises(DataError, match="all states of the cache are alike"):
        fitted(batches)


def test_the_loss_is_the_mean_square_over_a_pairs_own_tokens() -> None:
    torch.manual_seed(0)
    lengths = [3, 1, 2, 4]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    logps, base, credit = torch.randn(3, 10, dtype=torch.float64)
    logps.requires_grad_()
    batch = Batch(rows={}, offsets=offsets, step_pairs=2)
    sums = [batch.response_sums(values) for values in (logps, base)]
    scores = Scores(
        chosen_logps=sums[0][0],
        rejected_logps=sums[0][1],
        ref_chosen_logps=sums[1][0],
        ref_rejected_logps=sums[1][1],
        token_logps=logps,
        ref_token_logps=base,
        squared_norm=torch.ones(10, dtype=torch.float64),
    )
    objective = Objective(name="credit", beta=2.0, lambda_l2=0.25)
    found = scores.pair_sum_loss(objective, batch, credit=credit)
    wide = (logps - base).detach() - credit / 2
    squares = wide.square()
    assert found.item() == pytest.approx(float(squares[:4].mean() + squares[4:].mean()) + 2 * 0.25)
    torch.autograd.backward(found)
    tokens = torch.tensor([4.0] * 4 + [6.0] * 6, dtype=torch.float64)
    torch.testing.assert_close(logps.grad, 2 * wide / tokens)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "credit", "ld_alpha": 0.5}, "ld_alpha: got 0.5 with `objective` credit"),
        ({"credit_discount": 0.5}, "credit_discount: got 0.5 with `objective` dpo, expected none"),
        ({"objective": "credit", "credit_discount": 1.5}, "credit_discount: got 1.5"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(
    options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=expected):
        TrainOptions(cache="a", output_dir=tmp_path, **options)


def test_the_penalty_on_vectors_follows_objective_and_head(tmp_path: Path) -> None:
    def penalty(**options: Any) -> float:
        return TrainOptions(cache="a", output_dir=tmp_path, **options).as_objective().lambda_l2

    assert penalty() == penalty(head_type="bottleneck") == 0.001
    assert penalty(objective="credit") == penalty(head_type="unembedding") == 0
    assert penalty(objective="credit", head_type="unembedding", lambda_l2=0.5) == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_learns_credit_and_a_run_goes_on(
    tiny_cache: Path, tmp_path: Path, kind: HeadKind
) -> None:
    settings: dict[str, Any] = {"objective": "credit", "eval_steps": 2, "head_type": kind}
    with logged_messages() as logged:
        run(tiny_cache, tmp_path / "whole", **settings)
    assert any(line.startswith("Credit of tokens from layer ") for line in logged)
    losses = [line["eval_loss"] for line in metrics(tmp_path / "whole") if "eval_loss" in line]
    assert losses[-1] < losses[0]
    with interrupted_after(5):
        run(tiny_cache, tmp_path / "cut", **settings)
    run(tiny_cache, tmp_path / "cut", **settings, resume=True)
    assert_same(weights(tmp_path / "cut" / "last"), weights(tmp_path / "whole" / "last"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    with logged_messages() as logged:
        run(tiny_cache, tmp_path / "cut", **settings, resume=True)
    # A run that has ended asks for no credit.
    assert not any(line.startswith("Credit of tokens") for line in logged)
    found = checkpoint(tmp_path / "cut").state.trajectory
    assert (found["credit_discount"], found["lambda_l2"], found["beta"]) == (0.5, 0.0, 1.0)
