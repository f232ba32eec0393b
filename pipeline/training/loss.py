r"""What a head is trained to do.

All objectives look at log-probabilities of whole answers under the aligned model,

    log pi(y) = sum_t log softmax(z_base,t + a_t)[y_t],

of the chosen answer w and the rejected answer l.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch
from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
from mav.pipeline.ops.base_logits import BaseLogits
from mav.pipeline.ops.projection import Projection
from mav.pipeline.runtime.choices import ObjectiveName


@dataclass(frozen=True, kw_only=True)
class Objective:
    r"""A preference loss plus a penalty on the alignment vectors.

    - `mav`: -log sigmoid(beta * (log pi(w) - log pi(l))), the published objective of Modular
      Alignment Vectors. Its gradient keeps pushing until the aligned model itself ranks w first,
      also where the base is far off, as it is when l is much the shorter.
    - `dpo`: -log sigmoid(beta * ((log pi(w) - log pi(l)) - (log pi_base(w) - log pi_base(l)))),
      Rafailov et al. 2023, "Direct Preference Optimization", equation 7. The base's
      logits are at hand, so the reference costs one more sum over them.
    - Both add lambda_l2 times the mean, over the response tokens of both answers, of ||a_t||^2
      (summed over the vocabulary).

    Attributes:
        name: Which preference loss.
        beta: Its inverse temperature.
        lambda_l2: Weight of the penalty.
    """

    name: ObjectiveName
    beta: float
    lambda_l2: float

    def pair_losses(self, margin: Tensor, base_margin: Tensor) -> Tensor:
        """Return the preference loss of each pair.

        Args:
            margin: log pi(w) - log pi(l), [pairs].
            base_margin: The same under the base, [pairs].
        """
        anchored = margin - base_margin if self.name == "dpo" else margin
        return -F.logsigmoid(self.beta * anchored)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the aligned model makes of a batch.

    Attributes:
        chosen: log pi(w), [P].
        rejected: log pi(l), [P].
        base_chosen: log pi_base(w), [P].
        base_rejected: log pi_base(l), [P].
        squared_norm: ||a_t||^2 of each response token, [N].
    """

    chosen: Tensor
    rejected: Tensor
    base_chosen: Tensor
    base_rejected: Tensor
    squared_norm: Tensor

    def pair_sum_loss(self, objective: Objective, batch: Batch) -> Tensor:
        """Return the loss summed over pairs; each pair carries its own tokens' mean penalty.

        A pair's share of the penalty is the mean over its own tokens, so that the loss of a step
        is the same however its pairs are cut into micro-batches and processes.
        """
        losses = objective.pair_losses(
            self.chosen - self.rejected, self.base_chosen - self.base_rejected
        )
        norms = torch.add(*batch.response_sums(self.squared_norm))
        tokens = (batch.offsets[2::2] - batch.offsets[:-1:2]).to(norms.dtype)
        return losses.sum() + objective.lambda_l2 * (norms / tokens).sum()

    def metrics(self, objective: Objective) -> dict[str, Tensor]:
        """Return sums over pairs, under the names TRL's DPO trainer uses."""
        chosen = objective.beta * (self.chosen - self.base_chosen).detach()
        rejected = objective.beta * (self.rejected - self.base_rejected).detach()
        return {
            "rewards/chosen": chosen.sum(),
            "rewards/rejected": rejected.sum(),
            "rewards/accuracies": (chosen > rejected).sum(),
            "rewards/margins": (chosen - rejected).sum(),
            "logps/chosen": self.chosen.detach().sum(),
            "logps/rejected": self.rejected.detach().sum(),
            "logps/accuracies": (self.chosen > self.rejected).sum(),
        }


def last_layer(head: AlignmentHead, *, bf16: bool, accumulates: bool = False) -> Projection:
    """Return a head's last layer for training; see `Projection`."""
    return Projection(
        head.project.weight,
        head.project.bias,
        torch.bfloat16 if bf16 else None,
        accumulates=accumulates,
    )


class PreferenceModel(nn.Module):
    """The head with everything that has to happen inside one forward call.

    Data-parallel wrappers synchronise gradients of what their forward used, so the head's last
    layer must be reached through a module's call, not by its name.
    """

    def __init__(
        self, head: AlignmentHead, *, bf16: bool, projection: Projection | None = None
    ) -> None:
        """Wrap a head.

        Args:
            head: The head.
            bf16: Whether its products are computed in bfloat16.
            projection: Its last layer with what is kept between steps. Where a wrapper gives the
                head other weights at every call there is none.
        """
        super().__init__()
        self.head = head
        self._bf16 = bf16
        self._projection = projection

    def forward(self, batch: Batch, base: BaseLogits) -> Scores:
        """Score a batch; gradients flow into the head."""
        # Here rather than in the accelerator, whose precision is one for the whole process.
        with torch.autocast(batch.states.device.type, torch.bfloat16, enabled=self._bf16):
            features = self.head.features(batch.states)
        projection = self._projection or last_layer(self.head, bf16=self._bf16)
        logp, squared_norm, base_logp = aligned_logprobs(
            features, projection, base, batch.labels, base_logprobs=batch.base_logprobs
        )
        chosen, rejected = batch.response_sums(logp)
        base_chosen, base_rejected = batch.response_sums(base_logp)
        return Scores(
            chosen=chosen,
            rejected=rejected,
            base_chosen=base_chosen,
            base_rejected=base_rejected,
            squared_norm=squared_norm,
        )
