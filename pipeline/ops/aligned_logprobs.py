r"""Log-probabilities under the aligned model, without tokens x vocabulary ever existing at once.

For features x, projection W, b and base logits z, per token t with label y:

    a_t = W x_t + b,    logp_t = log softmax(c(z_t + a_t))[y_t],    n_t = ||a_t||^2

Here c(z) = z, or cap * tanh(z / cap) where the vector is added inside the base's soft-cap.

Work goes tile by tile, a tile being some tokens times some of the vocabulary. Forward keeps each
token's running log-sum-exp; backward computes a tile again, now knowing the whole sum, and from it
finishes the gradient of those rows of W at once. So W and its gradient are passed over once each.
The first tiles, up to a fixed amount of memory, are kept and not computed again.

W may also be the base's own output embedding, and x a shift of its last state h. The products of h
and of x stay apart all the same, and are added in float32: h + x in bfloat16 has only the digits of
x that reach the last place of h, and W h is needed anyway for the base's own log-probabilities.

Letters of shapes are in CONTRIBUTING.md; here the features x are the E inputs of the last layer.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.ops.base_logits import BaseLogits, capped
from mav.pipeline.ops.projection import Projection
from mav.pipeline.ops.tiling import Tiling

_ROWS_AT_ONCE: Final = 128


def aligned_logprobs(
    features: Tensor,
    projection: Projection,
    base: BaseLogits,
    labels: Tensor,
    *,
    base_logprobs: Tensor | None = None,
    softcap: float | None = None,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the labels, and squared norms of the alignment vectors.

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

    Returns:
        `logp` [N], `squared_norm` [N], and the base's own `logp` [N], through which no gradient
        flows; float32 (float64 for a float64 weight).
    """
    logp, norm, base_logp = _AlignedLogprobs.apply(  # type: ignore[no-untyped-call]
        features,
        projection.weight,
        projection.bias,
        projection,
        base,
        labels.long(),
        base_logprobs is None,
        softcap,
        tiling or Tiling.fitting(features),
    )
    return logp, norm, base_logp if base_logprobs is None else base_logprobs


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
        softcap: float | None,
        tiling: Tiling,
    ) -> tuple[Tensor, Tensor, Tensor]:
        acc_dtype = torch.promote_types(weight.dtype, torch.float32)
        total = torch.full((len(features),), -torch.inf, dtype=acc_dtype, device=features.device)
        picked, norm = torch.zeros_like(total), torch.zeros_like(total)
        base_total, base_picked = total.clone(), torch.zeros_like(total)
        logsumexp = _LogSumExp(tiling, acc_dtype, features.device)
        kept, left = [], tiling.kept_elements if any(ctx.needs_input_grad) else 0
        # An autocast that is on would change the types that are chosen here.
        with torch.autocast(features.device.type, enabled=False):
            compute_weight = projection.compute_weight()
            work = _Work(
                features.to(compute_weight.dtype), compute_weight, bias, base, softcap, acc_dtype
            )
            for rows, columns in tiling.tiles(len(features), len(weight)):
                in_tile, local_index = _labels_in(labels[rows], columns)
                logits_CD = base.chunk(rows.start, rows.stop, columns)
                if wants_base:
                    base_CD = capped(logits_CD, softcap)
                    base_picked[rows] += base_CD.gather(-1, local_index).squeeze(-1) * in_tile
                    base_total[rows] = torch.logaddexp(base_total[rows], logsumexp(base_CD))
                tile = work.compute(rows, columns, logits_CD)
                norm[rows] += tile.squared_norm
                picked[rows] += tile.logits.gather(-1, local_index).squeeze(-1) * in_tile
                total[rows] = torch.logaddexp(total[rows], logsumexp(tile.logits))
                left -= tile.logits.numel()
                if left >= 0:
                    kept.append(tile)
        ctx.save_for_backward(labels, total)
        ctx.work, ctx.kept, ctx.tiling, ctx.projection = work, kept, tiling, projection
        ctx.features_type = features.dtype
        base_logp = base_picked - base_total
        ctx.mark_non_differentiable(base_logp)
        return picked - total, norm, base_logp

    @staticmethod
    def backward(
        ctx: Any, grad_logp: Tensor, grad_norm: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        labels, total = ctx.saved_tensors
        work: _Work = ctx.work
        # What is kept is written over here; a second backward pass computes it again.
        kept: list[_Tile] = ctx.kept
        ctx.kept = []
        with torch.autocast(total.device.type, enabled=False):
            grads = _Gradients(ctx.projection, work, ctx.tiling)
            tiles = ctx.tiling.tiles(len(total), len(work.weight))
            for number, (rows, columns) in enumerate(tiles):
                tile = kept[number] if number < len(kept) else work.compute(rows, columns)
                # d logp / d c = onehot(y) - softmax(c(z + a));  d n / d a = 2 a
                slope = work.slope(tile.logits)
                grad = tile.logits.sub_(total[rows, None]).exp_().mul_(-grad_logp[rows, None])
                in_tile, local_index = _labels_in(labels[rows], columns)
                grad.scatter_add_(-1, local_index, (grad_logp[rows] * in_tile)[:, None])
                if slope is not None:
                    grad.mul_(slope)
                grad.addcmul_(work.vector(tile.product, columns), 2 * grad_norm[rows, None])
                grads.add(rows, columns, grad)
        return grads.features.to(ctx.features_type), *grads.for_autograd(), *[None] * 6


@dataclass(frozen=True)
class _Tile:
    """W x_t as the product came, c(z_t + a_t), both [C, D], and the tile's part of n_t, [C]."""

    product: Tensor
    logits: Tensor
    squared_norm: Tensor


@dataclass(frozen=True)
class _Work:
    """What tiles are computed from: x, W (in the products' type), b, z, c, and the sums' type."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    base: BaseLogits
    softcap: float | None
    acc_dtype: torch.dtype

    def compute(self, rows: slice, columns: slice, base_CD: Tensor | None = None) -> _Tile:
        """Compute a tile.

        Args:
            rows: Its tokens.
            columns: Its part of the vocabulary.
            base_CD: The base's logits for it, where they are known.
        """
        if base_CD is None:
            base_CD = self.base.chunk(rows.start, rows.stop, columns)
        product = F.linear(self.features[rows], self.weight[columns])
        vector = self.vector(product, columns)
        squared_norm = torch.linalg.vector_norm(vector, dim=-1).square_()
        logits = capped(vector.add_(base_CD), self.softcap)
        return _Tile(product, logits, squared_norm)

    def vector(self, product: Tensor, columns: slice) -> Tensor:
        """Return a_t [C, D]."""
        vector = product.to(self.acc_dtype, copy=True)
        return vector if self.bias is None else vector.add_(self.bias[columns])

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of c where it gave these logits, or None where it is 1."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square_()


class _Gradients:
    """Sums over tiles of the gradients of features [N, E], weight [V, E] and bias [V]."""

    def __init__(self, projection: Projection, work: _Work, tiling: Tiling) -> None:
        self._projection = projection
        self._work = work
        self.features = torch.zeros_like(work.features, dtype=work.acc_dtype)
        self._weight, self._bias = self._begun()
        # Products in the compute type, before they are added to sums in the accumulation type.
        self._to_features = torch.empty_like(work.features[: tiling.tokens])
        wanted = tiling.columns if projection.trained else 0
        self._to_weight = torch.empty_like(work.weight[:wanted])

    def _begun(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums of weight and bias to add to, each None where it is not wanted."""
        layer, dtype = self._projection, self._work.acc_dtype
        if not layer.trained:
            return None, None
        if not layer.accumulates_grad:
            bias = layer.bias
            return (
                torch.zeros_like(layer.weight, dtype=dtype),
                None if bias is None else torch.zeros_like(bias, dtype=dtype),
            )
        assert layer.weight.grad is not None, "a projection that accumulates has gradients"
        if layer.bias is None:
            return layer.weight.grad, None
        assert layer.bias.grad is not None, "a projection that accumulates has gradients"
        return layer.weight.grad, layer.bias.grad

    def add(self, rows: slice, columns: slice, grad: Tensor) -> None:
        """Add a tile of the gradient of the alignment vectors.

        Args:
            rows: Its tokens.
            columns: Its part of the vocabulary.
            grad: The gradient, [C, D].
        """
        work = self._work
        grad_lowp = grad.to(work.weight.dtype)
        product = torch.mm(grad_lowp, work.weight[columns], out=self._to_features[: len(grad_lowp)])
        _add(self.features[rows], product)
        if self._weight is not None:
            # On a CPU, copying the transpose first makes the product twice as fast.
            grad_T = grad_lowp.t().contiguous()
            product = torch.mm(grad_T, work.features[rows], out=self._to_weight[: len(grad_T)])
            _add(self._weight[columns], product)
        if self._bias is not None:
            self._bias[columns] += grad.sum(0)

    def for_autograd(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients for autograd, None where they are accumulated or not wanted."""
        layer = self._projection
        if layer.accumulates_grad or self._weight is None:
            return None, None
        weight = self._weight.to(layer.weight.dtype)
        if layer.bias is None or self._bias is None:
            return weight, None
        return weight, self._bias.to(layer.bias.dtype)


def _add(total: Tensor, product: Tensor) -> None:
    """Add a product to a sum of a wider type, without a copy of all of it in that type."""
    # Other devices than CPUs add mixed types in one pass, without such a copy.
    step = _ROWS_AT_ONCE if total.device.type == "cpu" else max(1, len(total))
    for start in range(0, len(total), step):
        total[start : start + step] += product[start : start + step]


class _LogSumExp:
    """Log sum exp over the vocabulary of tiles; on a CPU torch's own takes eight times as long."""

    def __init__(self, tiling: Tiling, dtype: torch.dtype, device: torch.device) -> None:
        # Allocating a new buffer costs more than what is computed in it.
        self._buffer = torch.empty(tiling.tokens * tiling.columns, dtype=dtype, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return it for logits [C, D], as [C]."""
        most = logits.amax(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
        buffer = self._buffer[: logits.numel()].view(logits.shape)
        return torch.sub(logits, most, out=buffer).exp_().sum(-1).log_().add_(most[:, 0])


def _labels_in(labels: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return which labels [C] lie in the columns, and [C, 1] where; 0 for those that do not."""
    in_tile = (labels >= columns.start) & (labels < columns.stop)
    return in_tile, torch.where(in_tile, labels - columns.start, 0)[:, None]
