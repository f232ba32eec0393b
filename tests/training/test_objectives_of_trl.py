"""The objectives against those of TRL, on the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mav.pipeline.runtime.choices import ObjectiveName
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


def dpo_trainer(name: str) -> Any:
    """What TRL's loss asks of its trainer, without a model or data."""
    gathered = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return SimpleNamespace(
        accelerator=gathered,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
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


def by_trl(name: str) -> Tensor:
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
            "ref_chosen_logps": base[0].sum()[None],
            "ref_rejected_logps": base[1].sum()[None],
        }
        loss = trainers.DPOTrainer._compute_loss(
            dpo_trainer(name), lambda said=said, **_: said, inputs, return_outputs=False
        )
        found.append(loss)
    return torch.stack(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF_DPO)
def test_a_loss_of_the_dpo_trainer(name: ObjectiveName) -> None:
    torch.testing.assert_close(ours(name), by_trl(name), rtol=1e-12, atol=1e-12)


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
