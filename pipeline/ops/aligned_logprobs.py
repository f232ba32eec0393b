r"""Log-probabilities under the aligned model, without tokens x vocabulary ever existing at once.

For features x, projection W, b and base logits z, per token t with label y:

    a_t = W x_t + b,    u_t = c(z_t + a_t),    logp_t = log softmax(u_t)[y_t],    n_t = ||a_t||^2

Here c(z) = z, or cap * tanh(z / cap) where the vector is added inside the base's soft-cap. Where
it is asked for, also the divergence from the base, with d_t = u_t - c(z_t), which is a_t without a
cap, and p_t = softmax(u_t):

    KL_t = KL(p_t || softmax(c(z_t))) = p_t . d_t - log sum exp u_t + log sum exp c(z_t)
    d KL_t / d u_tv = p_tv (d_tv - p_t . d_t)

Work goes tile by tile, a tile being some tokens times some of the vocabulary. Forward keeps each
token's running log-sum-exp and mean of d; backward computes a tile again, now knowing the whole
sums, and from it finishes the gradient of those rows of W at once. So W and its gradient are passed
over once each. The first tiles, up to a fixed amount of memory, are kept and not computed again.

W may also be the base's own output embedding, and x a shift of its last state h. The products of h
and of x stay apart all the same, and are added in float32: h + x in bfloat16 has only the digits of
x that reach the last place of h, and W h is needed anyway for the base's own log-probabilities.

Letters of shapes are in CONTRIBUTING.md; here the features x are the E inputs of the last layer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mav.pipeline.ops.base_logits import BaseLogits, capped
from mav.pipeline.ops.projection import Projection
from mav.pipeline.ops.tile_gradients import TileGradients
from mav.pipeline.ops.tiles import LogSumExp, Tile, TileWork, labels_in
from mav.pipeline.ops.tiling import Tiling


class AlignedLogprobs(NamedTuple):
    """What is known of N tokens under the aligned model; float32 (float64 for a float64 weight).

    Attributes:
        logp: log softmax(u_t)[y_t], [N].
        squared_norm: n_t, [N].
        base_logp: The base's own log-probabilities, [N], through which no gradient flows.
        kl: KL_t in nats, [N]; None where it was not asked for.
    """

    logp: Tensor
    squared_norm: Tensor
    base_logp: Tensor
    kl: Tensor | None


def aligned_logprobs(
    features: Tensor,
    projection: Projection,
    base: BaseLogits,
    labels: Tensor,
    *,
    base_logprobs: Tensor | None = None,
    softcap: float | None = None,
    tiling: Tiling | None = None,
    wants_kl: bool = False,
) -> AlignedLogprobs:
    """Return log-probabilities of the labels, and how far the alignment vectors go.

    Args:
        features: [N, E], input of the head's last layer.
        projection: That layer.
        base: The base's logits for the same N tokens, before their soft-cap where there is one;
            no gradient flows into them.
        labels: Integer [N].
        base_logprobs: Log-probabilities of the labels under the base alone, [N], where they are
            known; they are computed from its logits otherwise.
        softcap: Bound of the logits, with or without the vector; None for no bound here.
        tiling: How to cut the work; what suits the device if None.
        wants_kl: Whether the divergence from the base is wanted, to logits as `base` gives them.
    """
    logp, norm, base_logp, kl = _AlignedLogprobs.apply(  # type: ignore[no-untyped-call]
        features,
        projection.weight,
        projection.bias,
        projection,
        base,
        labels.long(),
        base_logprobs is None,
        wants_kl,
        softcap,
        tiling or Tiling.fitting(features),
    )
    return AlignedLogprobs(logp, norm, base_logp if base_logprobs is None else base_logprobs, kl)


class _AlignedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        projection: Projection,
        base: BaseLogits,
        labels: Tensor,
        wants_base: bool,
        wants_kl: bool,
        softcap: float | None,
        tiling: Tiling,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        acc_dtype = torch.promote_types(weight.dtype, torch.float32)
        total = torch.full((len(features),), -torch.inf, dtype=acc_dtype, device=features.device)
        picked, norm = torch.zeros_like(total), torch.zeros_like(total)
        base_total, base_picked = total.clone(), torch.zeros_like(total)
        mean_moved = torch.zeros_like(total)
        logsumexp = LogSumExp(tiling, acc_dtype, features.device)
        kept, left = [], tiling.kept_elements if any(ctx.needs_input_grad) else 0
        # An autocast that is on would change the types that are chosen here.
        with torch.autocast(features.device.type, enabled=False):
            compute_weight = projection.compute_weight()
            work = TileWork(
                features.to(compute_weight.dtype), compute_weight, bias, base, softcap, acc_dtype
            )
            for rows, columns in tiling.tiles(len(features), len(weight)):
                in_tile, local_index = labels_in(labels[rows], columns)
                logits_CD = base.chunk(rows.start, rows.stop, columns)
                base_CD = None
                if wants_base or wants_kl:
                    base_CD = capped(logits_CD, softcap).to(acc_dtype)
                    base_picked[rows] += base_CD.gather(-1, local_index).squeeze(-1) * in_tile
                    base_total[rows] = torch.logaddexp(base_total[rows], logsumexp(base_CD))
                tile = work.compute(rows, columns, logits_CD)
                norm[rows] += tile.squared_norm
                picked[rows] += tile.logits.gather(-1, local_index).squeeze(-1) * in_tile
                if wants_kl:
                    vector_CD = work.vector(tile.product, columns)
                    moved_CD = work.moved(tile, vector_CD, rows, columns, base_CD)
                    of_tile, mean = logsumexp.with_mean(tile.logits, moved_CD)
                    whole = torch.logaddexp(total[rows], of_tile)
                    # Nothing of it where all logits so far are -inf, which has no share.
                    share = (of_tile - whole).exp_().nan_to_num_(0.0)
                    mean_moved[rows] = torch.lerp(mean_moved[rows], mean, share)
                    total[rows] = whole
                else:
                    total[rows] = torch.logaddexp(total[rows], logsumexp(tile.logits))
                left -= tile.logits.numel()
                if left >= 0:
                    kept.append(tile)
        ctx.save_for_backward(labels, total, mean_moved)
        ctx.work, ctx.kept, ctx.tiling, ctx.projection = work, kept, tiling, projection
        ctx.features_type = features.dtype
        base_logp = base_picked - base_total
        ctx.mark_non_differentiable(base_logp)
        kl = mean_moved - (total - base_total) if wants_kl else None
        return picked - total, norm, base_logp, kl

    @staticmethod
    def backward(
        ctx: Any, grad_logp: Tensor, grad_norm: Tensor, _: Tensor, grad_kl: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        labels, total, mean_moved = ctx.saved_tensors
        work: TileWork = ctx.work
        # What is kept is written over here; a second backward pass computes it again.
        kept: list[Tile] = ctx.kept
        ctx.kept = []
        with torch.autocast(total.device.type, enabled=False):
            grads = TileGradients(ctx.projection, work, ctx.tiling)
            tiles = ctx.tiling.tiles(len(total), len(work.weight))
            for number, (rows, columns) in enumerate(tiles):
                tile = kept[number] if number < len(kept) else work.compute(rows, columns)
                # d logp / d u = onehot(y) - softmax(u);  d n / d a = 2 a;  d KL / d u is above
                slope, vector_CD = work.slope(tile.logits), work.vector(tile.product, columns)
                factor = -grad_logp[rows, None]
                if grad_kl is not None:
                    moved_CD = work.moved(tile, vector_CD, rows, columns)
                    of_kl = grad_kl[rows, None]
                    factor = torch.addcmul(factor - of_kl * mean_moved[rows, None], moved_CD, of_kl)
                grad = tile.logits.sub_(total[rows, None]).exp_().mul_(factor)
                in_tile, local_index = labels_in(labels[rows], columns)
                grad.scatter_add_(-1, local_index, (grad_logp[rows] * in_tile)[:, None])
                if slope is not None:
                    grad.mul_(slope)
                grad.addcmul_(vector_CD, 2 * grad_norm[rows, None])
                grads.add(rows, columns, grad)
        return grads.features.to(ctx.features_type), *grads.for_autograd(), *[None] * 7
