"""The model of training: what it says of a batch, and the loss of that."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mav.cache_schema.errors import UsageError
from mav.pipeline.head.addition import addition
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.loader.batch import Batch
from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
from mav.pipeline.ops.base_logits import BaseLogits
from mav.pipeline.ops.projection import Projection
from mav.pipeline.training.objectives import Objective

PairLoss = Callable[["Scores", Batch], Tensor]
"""A loss of one's own: of the scores of a batch, one number for each pair, [P]."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Log-probabilities of a batch's responses under the aligned model and the base.

    Attributes:
        chosen_logps: log pi(w), [P].
        rejected_logps: log pi(l), [P].
        ref_chosen_logps: log pi_base(w), [P].
        ref_rejected_logps: log pi_base(l), [P].
        token_logps: log pi of each response token, [N].
        ref_token_logps: The same under the base, [N].
        squared_norm: ||a_t||^2 of each response token, [N].
        kl: KL(pi || pi_base) at each response token in nats, [N], or None where it was not
            computed.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    token_logps: Tensor
    ref_token_logps: Tensor
    squared_norm: Tensor
    kl: Tensor | None = None

    @property
    def gains(self) -> tuple[Tensor, Tensor]:
        """What the head adds to the log-probabilities of chosen and rejected, [P] both."""
        return (
            self.chosen_logps - self.ref_chosen_logps,
            self.rejected_logps - self.ref_rejected_logps,
        )

    def pair_sum_loss(
        self,
        objective: Objective,
        batch: Batch,
        *,
        credit: Tensor | None = None,
        own: "PairLoss | None" = None,
    ) -> Tensor:
        """Return the loss summed over pairs; each pair carries its own tokens' mean penalties.

        A pair's share of a penalty is the mean over its own tokens, so that the loss of a step is
        the same however its pairs are cut into micro-batches and processes.

        Args:
            objective: The objective; one with `lambda_kl` needs `kl`.
            batch: The batch that the scores are of.
            credit: Credit of each response token, [N]; of the objective `credit` alone.
            own: The user's loss of each pair, instead of the objective's.
        """
        lengths = batch.response_lengths
        if own is not None:
            loss = require_pair_losses(own(self, batch), batch.pairs).sum()
        elif credit is not None:
            wide = self.token_logps - self.ref_token_logps - credit / objective.beta
            loss = _means(wide.square(), batch).sum()
        else:
            loss = self._preference_loss(objective, batch)
        loss = loss + objective.lambda_l2 * _means(self.squared_norm, batch).sum()
        if objective.lambda_kl:
            assert self.kl is not None, "a model of this objective computes it"
            loss = loss + objective.lambda_kl * _means(self.kl, batch).sum()
        if objective.lambda_sft:
            loss = loss - objective.lambda_sft * (self.chosen_logps / lengths[0]).sum()
        return loss

    def _preference_loss(self, objective: Objective, batch: Batch) -> Tensor:
        logps = self.chosen_logps, self.rejected_logps
        ref_logps = self.ref_chosen_logps, self.ref_rejected_logps
        if objective.ld_alpha is not None:
            logps = _desensitized(self.token_logps, batch, objective.ld_alpha)
            ref_logps = _desensitized(self.ref_token_logps, batch, objective.ld_alpha)
        return objective.pair_losses(logps, ref_logps, batch.response_lengths).sum()

    def margins(self) -> Tensor:
        """Return what the head added to each pair's margin in nats, [P], without a graph."""
        chosen = self.chosen_logps - self.ref_chosen_logps
        return (chosen - (self.rejected_logps - self.ref_rejected_logps)).detach()

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


def require_pair_losses(losses: object, pairs: int) -> Tensor:
    """Return the losses that a function of the user's gave, one for each pair.

    Raises:
        UsageError: They are something else.
    """
    if not isinstance(losses, Tensor) or losses.shape != (pairs,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise UsageError(f"loss: got {got}, expected a loss for each pair, of shape ({pairs},)")
    return losses


def name_of_loss(loss: PairLoss) -> str:
    """Return what a run calls a loss of the user's."""
    return f"own loss {getattr(loss, '__name__', type(loss).__name__)}"


def _means(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of per-token values [N] over both responses of each pair, [P]."""
    sums, tokens = torch.add(*batch.response_sums(values)), torch.add(*batch.response_lengths)
    return sums / tokens.to(sums.dtype)


def _desensitized(values: Tensor, batch: Batch, ld_alpha: float) -> tuple[Tensor, Tensor]:
    """Sum per-token values [N] over responses; return chosen and rejected, [P] both.

    Those behind the length of the pair's shorter response count `ld_alpha` times.
    """
    lengths, count = batch.offsets.diff(), len(values)
    both = torch.minimum(*batch.response_lengths).repeat_interleave(2)
    ends = (batch.offsets[:-1] + both).repeat_interleave(lengths, output_size=count)
    inside = torch.arange(count, device=ends.device) < ends
    return batch.response_sums(torch.where(inside, values, ld_alpha * values))


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
        self,
        head: AlignmentHead,
        *,
        bf16: bool,
        projection: Projection | None = None,
        wants_kl: bool = False,
    ) -> None:
        """Wrap a head.

        Args:
            head: The head.
            bf16: Whether its products are computed in bfloat16.
            projection: Its last layer with what is kept between steps; None where a wrapper gives
                the head other weights at every call.
            wants_kl: Whether to compute the divergence from the base in training too; in
                evaluation it always is.
        """
        super().__init__()
        self.head = head
        self._bf16 = bf16
        self._projection = projection
        self._wants_kl = wants_kl

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
        logp, squared_norm, base_logp, kl = aligned_logprobs(
            added.features,
            added.projection,
            added.base,
            batch.labels,
            base_logprobs=batch.base_logprobs,
            softcap=added.softcap,
            wants_kl=self._wants_kl or not self.training,
        )
        chosen, rejected = batch.response_sums(logp)
        ref_chosen, ref_rejected = batch.response_sums(base_logp)
        return Scores(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=ref_chosen,
            ref_rejected_logps=ref_rejected,
            token_logps=logp,
            ref_token_logps=base_logp,
            squared_norm=squared_norm,
            kl=kl,
        )
