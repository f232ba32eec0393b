"""The objectives against those of TRL, on the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mav.pipeline.loader.batch import Batch
from mav.pipeline.runtime.choices import ObjectiveName
from mav.pipeline.training.loss import Scores
from mav.pipeline.training.objectives import Objective, Pair

LENGTHS = ((3, 1), (5, 8), (2, 2), (1, 9), (7, 4))
BETA, SMOOTHING, GAMMA = 0.3, 0.2, 0.7
OF_DPO: tuple[ObjectiveName, ...] = (
    "sigmoid",
    "sigmoid_norm",
    "ipo",
    "hinge",
    "robust",
    "apo_zero",
    "apo_down",
)


def token_logps(seed: int) -> list[Tensor]:
    """Of each response's tokens: all chosen ones, then all rejected ones."""
    made = torch.Generator().manual_seed(seed)
    return [
        -3 * torch.rand(lengths[side], generator=made, dtype=torch.float64)
        for side in range(2)
        for lengths in LENGTHS
    ]


def sums_of(tokens: list[Tensor]) -> Pair:
    sums = torch.stack([response.sum() for response in tokens])
    return sums[: len(LENGTHS)], sums[len(LENGTHS) :]


def ours(name: ObjectiveName) -> Tensor:
    lengths = torch.tensor(LENGTHS).double()
    objective = Objective(
        name=name, beta=BETA, lambda_l2=0.0, label_smoothing=SMOOTHING, simpo_gamma=GAMMA
    )
    return objective.pair_losses(
        sums_of(token_logps(1)), sums_of(token_logps(2)), (lengths[:, 0], lengths[:, 1])
    )


def dpo_trainer(name: str, ld_alpha: float | None = None) -> Any:
    """What TRL's loss asks of its trainer, without a model or data."""
    gathered = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return SimpleNamespace(
        accelerator=gathered,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=ld_alpha,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=SMOOTHING,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )


def by_trl(name: str, ld_alpha: float | None = None) -> Tensor:
    """TRL's loss of each pair by itself, as it returns the mean over a batch."""
    trainers = pytest.importorskip("trl.trainer.dpo_trainer")
    found = []
    for pair in range(len(LENGTHS)):
        mine, base = (
            [tokens[pair], tokens[len(LENGTHS) + pair]]
            for tokens in (token_logps(1), token_logps(2))
        )
        width = max(LENGTHS[pair])
        padded = torch.stack([torch.nn.functional.pad(t, (0, width - len(t))) for t in mine])
        # One token of prompt, which predicts the first of the response.
        mask = torch.tensor([[0] + [1] * n + [0] * (width - n) for n in LENGTHS[pair]])
        nothing = torch.zeros_like(padded)
        said = SimpleNamespace(
            log_probs=padded, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )
        inputs = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
        }
        for side, response in zip(("chosen", "rejected"), base, strict=True):
            both, behind = response[: min(LENGTHS[pair])], response[min(LENGTHS[pair]) :]
            kept = 1.0 if ld_alpha is None else ld_alpha
            inputs[f"ref_{side}_logps"] = (both.sum() + kept * behind.sum())[None]
        loss = trainers.DPOTrainer._compute_loss(
            dpo_trainer(name, ld_alpha), lambda said=said, **_: said, inputs, return_outputs=False
        )
        found.append(loss)
    return torch.stack(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF_DPO)
def test_a_loss_of_the_dpo_trainer(name: ObjectiveName) -> None:
    torch.testing.assert_close(ours(name), by_trl(name), rtol=1e-12, atol=1e-12)


def terms(name: ObjectiveName, **more: float) -> Tensor:
    """Our loss of all pairs, from the log-probabilities of tokens as training has them."""
    count = len(LENGTHS)
    mine, base = (
        torch.cat([tokens[at + side * count] for at in range(count) for side in range(2)])
        for tokens in (token_logps(1), token_logps(2))
    )
    offsets = torch.tensor([0, *(n for pair in LENGTHS for n in pair)]).cumsum(0)
    batch = Batch(rows={}, offsets=offsets, step_pairs=count)
    (chosen, rejected), (ref_chosen, ref_rejected) = map(batch.response_sums, (mine, base))
    scores = Scores(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        token_logps=mine,
        ref_token_logps=base,
        squared_norm=torch.zeros_like(mine),
    )
    objective = Objective(
        name=name, beta=BETA, lambda_l2=0.0, label_smoothing=SMOOTHING, simpo_gamma=GAMMA, **more
    )
    return scores.pair_sum_loss(objective, batch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF_DPO)
def test_lengths_are_desensitized_as_by_the_dpo_trainer(name: ObjectiveName) -> None:
    expected = by_trl(name, ld_alpha=0.4)
    torch.testing.assert_close(terms(name, ld_alpha=0.4), expected.sum(), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected, by_trl(name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_likelihood_of_chosen_ones_is_that_of_the_dpo_trainer(weight: float) -> None:
    expected = (by_trl("sigmoid") + weight * by_trl("sft")).sum()
    torch.testing.assert_close(terms("dpo", lambda_sft=weight), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_simpo_of_the_cpo_trainer() -> None:
    trainers = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    asked = SimpleNamespace(
        alpha=0.0,
        beta=BETA,
        loss_type="simpo",
        simpo_gamma=GAMMA,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    lengths = torch.tensor(LENGTHS).double()
    means = [total / lengths[:, side] for side, total in enumerate(sums_of(token_logps(1)))]
    losses, _, _ = trainers.CPOTrainer.cpo_loss(asked, *means)
    torch.testing.assert_close(ours("simpo"), losses, rtol=1e-12, atol=1e-12)
