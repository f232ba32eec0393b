"""The objectives against their formulas, written out pair by pair."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from mav.cache_schema import Block, CacheReader
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch, CachedBase, collate
from mav.pipeline.ops.base_logits import DenseLogits
from mav.pipeline.runtime.choices import ObjectiveName
from mav.pipeline.training.defaults import settled
from mav.pipeline.training.loss import PreferenceModel, Scores
from mav.pipeline.training.objectives import Objective
from mav.pipeline.training.options import TrainOptions
from tests.support.running.runs import metrics, run
from tests.support.steering.live import cached_logprobs

LENGTHS = (3, 1, 2, 4, 1, 1)
"""Tokens of chosen and rejected of three pairs."""
VOCAB = 9
NAMES: tuple[ObjectiveName, ...] = ("mav", "dpo")


def random_head(vocab: int = VOCAB, *, width: int = 4, dropout: float = 0.0) -> AlignmentHead:
    torch.manual_seed(1)
    head = AlignmentHead(
        HeadConfig(
            num_layers=3, pooled_size=width, expansion_size=6, vocab_size=vocab, dropout=dropout
        )
    )
    torch.nn.init.normal_(head.project.weight)
    torch.nn.init.normal_(head.project.bias)
    return head


def made_up_batch() -> tuple[Batch, DenseLogits]:
    torch.manual_seed(2)
    count = sum(LENGTHS)
    logits = 2 * torch.randn(count, VOCAB)
    labels = torch.randint(VOCAB, (count,), dtype=torch.int32)
    base_logprobs = logits.double().log_softmax(-1)[torch.arange(count), labels.long()]
    rows = {
        "hidden_states": torch.randn(count, 3, 4, dtype=torch.float64),
        "labels": labels,
        "base_logprobs": base_logprobs,
    }
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    return Batch(rows=rows, offsets=offsets, step_pairs=3), DenseLogits(logits=logits)


def loss_by_formula(
    head: AlignmentHead, batch: Batch, logits: Tensor, objective: Objective
) -> Tensor:
    """Sum over pairs of -log sigmoid(beta * margin) + lambda * mean ||a_t||^2."""
    total = torch.zeros((), dtype=torch.float64)
    bounds = batch.offsets.tolist()
    for pair in range(batch.pairs):
        sums, base_sums, norms = [0.0, 0.0], [0.0, 0.0], []
        for side in range(2):
            for token in range(bounds[2 * pair + side], bounds[2 * pair + side + 1]):
                vector = head(batch.states[token])
                z_base = logits[token].double()
                label = int(batch.labels[token])
                sums[side] += (z_base + vector).log_softmax(-1)[label]
                base_sums[side] += float(z_base.log_softmax(-1)[label])
                norms.append((vector**2).sum())
        margin = sums[0] - sums[1]
        if objective.name == "dpo":
            margin = margin - (base_sums[0] - base_sums[1])
        preference = -torch.log(1 / (1 + torch.exp(-objective.beta * torch.as_tensor(margin))))
        total = total + preference + objective.lambda_l2 * sum(norms) / len(norms)
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lambda_l2", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_losses_and_gradients_follow_the_formula(
    name: ObjectiveName, lambda_l2: float, beta: float
) -> None:
    head = random_head().double()
    batch, base = made_up_batch()
    objective = Objective(name=name, beta=beta, lambda_l2=lambda_l2)
    found = PreferenceModel(head, bf16=False)(batch, base).pair_sum_loss(objective, batch)
    expected = loss_by_formula(head, batch, base.logits, objective)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    parameters = list(head.parameters())
    for got, wanted in zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "margin", "base_margin", "expected"),
    [
        ("mav", 0.0, 5.0, math.log(2)),
        ("mav", 10.0, 5.0, math.log1p(math.exp(-1))),
        ("dpo", 5.0, 5.0, math.log(2)),
        ("dpo", 10.0, 5.0, math.log1p(math.exp(-0.5))),
        ("dpo", -1e6, 0.0, 1e5),
        ("mav", 1e6, 0.0, 0.0),
    ],
)
def test_pair_losses_by_hand(
    name: ObjectiveName, margin: float, base_margin: float, expected: float
) -> None:
    objective = Objective(name=name, beta=0.1, lambda_l2=0.3)
    none, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    losses = objective.pair_losses((none + margin, none), (none + base_margin, none), (one, one))
    assert losses.tolist() == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mav", math.log1p(math.exp(-2))),
        ("dpo", math.log1p(math.exp(-1))),
        ("sigmoid", math.log1p(math.exp(-1))),
        ("sigmoid_norm", math.log1p(math.exp(-0.375))),
        ("simpo", math.log1p(math.exp(0.45))),
        ("ipo", 0.0625),
        ("hinge", 0.0),
        ("robust", (0.8 * math.log1p(math.exp(-1)) - 0.2 * math.log1p(math.exp(1))) / 0.6),
        ("apo_zero", 2 / (1 + math.exp(0.5))),
        ("apo_down", 1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(1))),
    ],
)
def test_every_objective_by_hand(name: ObjectiveName, expected: float) -> None:
    """Gains of 1 and -1, over two tokens and four."""
    objective = Objective(name=name, beta=0.5, lambda_l2=0.3, label_smoothing=0.2, simpo_gamma=0.7)

    def pair(chosen: float, rejected: float) -> tuple[Tensor, Tensor]:
        return torch.tensor([chosen]).double(), torch.tensor([rejected]).double()

    losses = objective.pair_losses(pair(-2, -6), pair(-3, -5), pair(2, 4))
    assert losses.tolist() == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize(
    ("asked", "beta", "more"),
    [
        ({"objective": "sigmoid"}, 0.1, {"objective": "dpo"}),
        ({"objective": "sigmoid_norm"}, 5.0, {"label_smoothing": None}),
        ({"objective": "simpo"}, 2.0, {"simpo_gamma": 0.5}),
        ({"objective": "simpo", "beta": 1.0, "simpo_gamma": 0.0}, 1.0, {"simpo_gamma": 0.0}),
        ({"objective": "robust"}, 0.1, {"label_smoothing": 0.1, "simpo_gamma": None}),
    ],
)
def test_what_is_left_open_of_an_objective(
    tiny_cache: Path, asked: dict[str, Any], beta: float, more: dict[str, Any]
) -> None:
    options = TrainOptions(cache=tiny_cache, output_dir=tiny_cache / "none", **asked)
    found = settled(options, CacheReader(tiny_cache).manifest, torch.device("cpu"))
    assert found.beta == beta == options.as_objective().beta
    assert {name: getattr(found, name) for name in more} == more
    assert found.as_objective() == options.as_objective()


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_raises_what_was_chosen(
    tiny_cache: Path, tmp_path: Path, name: ObjectiveName
) -> None:
    run(tiny_cache, tmp_path, objective=name, eval_steps=8)
    (last,) = (line for line in metrics(tmp_path) if "eval_loss" in line)
    assert last["eval_rewards/margins"] > 0


def everything(reader: CacheReader) -> list[tuple[Block, int]]:
    blocks = [reader.read_block(number) for number in range(reader.plan.blocks)]
    return [(block, index) for block in blocks for index in range(len(block.pairs))]


def test_a_new_head_leaves_the_base_as_it_is(tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    batch = collate(everything(reader), reader.manifest, 40)
    head = AlignmentHead(
        HeadConfig(num_layers=3, pooled_size=32, expansion_size=16, vocab_size=300)
    )
    base = CachedBase(reader, torch.device("cpu"))
    scores = PreferenceModel(head, bf16=False)(batch, base.logits(batch))
    chosen, rejected = batch.response_sums(cached_logprobs(reader, batch).float())
    torch.testing.assert_close(scores.chosen_logps, chosen)
    torch.testing.assert_close(scores.rejected_logps, rejected)
    # Exactly, so that every pair begins at no margin.
    assert torch.equal(scores.ref_chosen_logps, scores.chosen_logps)
    assert torch.equal(scores.ref_rejected_logps, scores.rejected_logps)
    assert not scores.squared_norm.any()
    dpo = Objective(name="dpo", beta=0.1, lambda_l2=1.0)
    loss = scores.pair_sum_loss(dpo, batch)
    assert float(loss.detach()) / 40 == pytest.approx(math.log(2), abs=1e-5)


def test_dpo_of_a_policy_that_is_the_base_is_log_two_exactly() -> None:
    batch, _ = made_up_batch()
    assert batch.base_logprobs is not None
    chosen, rejected = batch.response_sums(batch.base_logprobs)
    scores = Scores(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=chosen,
        ref_rejected_logps=rejected,
        token_logps=batch.base_logprobs,
        ref_token_logps=batch.base_logprobs,
        squared_norm=torch.zeros(sum(LENGTHS), dtype=torch.float64),
    )
    loss = scores.pair_sum_loss(Objective(name="dpo", beta=0.1, lambda_l2=1.0), batch)
    assert float(loss) == 3 * math.log(2)


def test_metrics_by_hand() -> None:
    scores = Scores(
        chosen_logps=torch.tensor([-1.0, -5.0, -7.0]),
        rejected_logps=torch.tensor([-2.0, -3.0, -8.0]),
        ref_chosen_logps=torch.tensor([-2.0, -9.0, -4.0]),
        ref_rejected_logps=torch.tensor([-4.0, -4.0, -9.0]),
        token_logps=torch.zeros(0),
        ref_token_logps=torch.zeros(0),
        squared_norm=torch.zeros(0),
    )
    found = scores.metrics(Objective(name="mav", beta=0.5, lambda_l2=0.0))
    assert {name: float(value) for name, value in found.items()} == {
        "rewards/chosen": 0.5 * (1 + 4 - 3),
        "rewards/rejected": 0.5 * (2 + 1 + 1),
        "rewards/accuracies": 1.0,
        "rewards/margins": 0.5 * (-1 + 3 - 4),
        "logps/chosen": -13.0,
        "logps/rejected": -13.0,
        "logps/accuracies": 2.0,
    }


def test_metrics_carry_no_graph() -> None:
    batch, base = made_up_batch()
    scores = PreferenceModel(random_head().double(), bf16=False)(batch, base)
    found = scores.metrics(Objective(name="dpo", beta=0.5, lambda_l2=0.0))
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 3, 7, 39])
def test_the_sum_is_the_same_however_a_batch_is_cut(
    tiny_cache: Path, name: ObjectiveName, size: int
) -> None:
    reader = CacheReader(tiny_cache)
    pairs = everything(reader)
    model = PreferenceModel(random_head(300, width=32).double(), bf16=False)
    base = CachedBase(reader, torch.device("cpu"))
    objective = Objective(name=name, beta=0.1, lambda_l2=0.01)

    def loss_and_gradient(pairs_at_once: int) -> list[Tensor]:
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for at in range(0, len(pairs), pairs_at_once):
            batch = collate(pairs[at : at + pairs_at_once], reader.manifest, len(pairs))
            loss = model(batch, base.logits(batch)).pair_sum_loss(objective, batch)
            loss.backward()
            total += loss.detach()
        return [total, *(p.grad for p in model.parameters() if p.grad is not None)]

    found, whole = loss_and_gradient(size), loss_and_gradient(len(pairs))
    assert len(found) == len(whole) == 7
    for got, wanted in zip(found, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_model_passes_its_compute_type_on() -> None:
    head = random_head()
    batch, base = made_up_batch()
    narrow = PreferenceModel(head, bf16=True)(batch, base)
    wide = PreferenceModel(head, bf16=False)(batch, base)
    torch.testing.assert_close(narrow.chosen_logps, wide.chosen_logps, rtol=0.05, atol=0.05)
    assert not torch.equal(narrow.chosen_logps, wide.chosen_logps)
