"""The model of training: what it says of a batch, and the loss of that."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mav.pipeline.head.addition import addition
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch
from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
from mav.pipeline.ops.base_logits import BaseLogits
from mav.pipeline.ops.projection import Projection
from mav.pipeline.training.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities of a batch's responses under the aligned model and the base.

    Attributes:
        chosen_logps: log pi(w), [P].
        rejected_logps: log pi(l), [P].
        ref_chosen_logps: log pi_base(w), [P].
        ref_rejected_logps: log pi_base(l), [P].
        squared_norm: ||a_t||^2 of each response token, [N].
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    squared_norm: Tensor

    def pair_sum_loss(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the loss summed over pairs; each pair carries its own tokens' mean penalty.

        A pair's share of the penalty is the mean over its own tokens, so that the loss of a step
        is the same however its pairs are cut into micro-batches and processes.

        Args:
            objective: The objective.
            batch: The batch that the scores are of.
        """
        lengths = batch.response_lengths
        losses = objective.pair_losses(
            (self.chosen_logps, self.rejected_logps),
            (self.ref_chosen_logps, self.ref_rejected_logps),
            lengths,
        )
        norms = torch.add(*batch.response_sums(self.squared_norm))
        tokens = torch.add(*lengths).to(norms.dtype)
        return losses.sum() + objective.lambda_l2 * (norms / tokens).sum()

    def metrics(self, objective: Objective) -> dict[str, Tensor]:
        """Return sums over pairs, under the names TRL's DPO trainer uses."""
        chosen = objective.beta * (self.chosen_logps - self.ref_chosen_logps).detach()
        rejected = objective.beta * (self.rejected_logps - self.ref_rejected_logps).detach()
        return {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "logps/chosen": self.chosen_logps.detach().sum(),
            "logps/rejected": self.rejected_logps.detach().sum(),
            "logps/accuracies": (self.chosen_logps > self.rejected_logps).sum(),
        }


def last_layer(head: AlignmentHead, *, bf16: bool, accumulates_grad: bool = False) -> Projection:
    """Return a head's last layer, as the projection of one that acts on the logits.

    Args:
        head: The head.
        bf16: Whether its products are computed in bfloat16.
        accumulates_grad: See `Projection`.
    """
    return Projection(
        head.project.weight,
        head.project.bias,
        torch.bfloat16 if bf16 else None,
        accumulates_grad=accumulates_grad,
    )


class PreferenceModel(nn.Module):
    """A head as a module whose forward call scores a batch.

    Data-parallel wrappers synchronise gradients of what their forward call used, so the head's last
    layer must be used inside one.
    """

    def __init__(
        self, head: AlignmentHead, *, bf16: bool, projection: Projection | None = None
    ) -> None:
        """Wrap a head.

        Args:
            head: The head.
            bf16: Whether its products are computed in bfloat16.
            projection: Its last layer with what is kept between steps; None where a wrapper gives
                the head other weights at every call.
        """
        super().__init__()
        self.head = head
        self._bf16 = bf16
        self._projection = projection

    def forward(self, batch: Batch, base: BaseLogits) -> Scores:
        """Score a batch; gradients flow into the head.

        Args:
            batch: The batch.
            base: The base's logits for it.
        """
        # Here rather than in the accelerator, whose precision is one for the whole process.
        with torch.autocast(batch.states.device.type, torch.bfloat16, enabled=self._bf16):
            projection = self._projection or last_layer(self.head, bf16=self._bf16)
            added = addition(self.head, batch.states, base, projection)
        logp, squared_norm, base_logp = aligned_logprobs(
            added.features,
            added.projection,
            added.base,
            batch.labels,
            base_logprobs=batch.base_logprobs,
            softcap=added.softcap,
        )
        chosen, rejected = batch.response_sums(logp)
        ref_chosen, ref_rejected = batch.response_sums(base_logp)
        return Scores(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            squared_norm=squared_norm,
        )
