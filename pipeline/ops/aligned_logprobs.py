r"""Log-probabilities under the aligned model, without tokens x vocabulary ever existing at once.

For features x, projection W, b and base logits z, per token t with label y:

    a_t = W x_t + b,    logp_t = log softmax(z_t + a_t)[y_t],    n_t = ||a_t||^2

Work goes tile by tile, a tile being some tokens times some of the vocabulary. Forward keeps each
token's running log-sum-exp; backward computes a tile again, now knowing the whole sum, and from it
finishes the gradient of those rows of W at once. So W and its gradient are passed over once each.
The first tiles, up to a fixed amount of memory, are kept and not computed again.

Letters of shapes are in CONTRIBUTING.md; here the features x are the E inputs of the last layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.ops.base_logits import BaseLogits
from mav.pipeline.ops.projection import Projection

CHUNK_ELEMENTS: Final = 1 << 26
"""Elements of the largest temporary: 256 MiB in float32."""

KEPT_ELEMENTS: Final = 1 << 27
"""Elements of the tiles that are kept for the backward pass: 768 MiB in bfloat16 products."""

_TILE_TOKENS: Final = 8192
_COLUMN_STEP: Final = 256
_ROWS_AT_ONCE: Final = 128
_CPU_TILE_ELEMENTS: Final = 1 << 22
"""On a CPU tiles small enough to stay in its caches are quickest."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How tokens x vocabulary is cut.

    Attributes:
        tokens: Tokens of a tile, C.
        columns: Entries of the vocabulary of a tile, D.
        kept_elements: Elements of the tiles that are kept from forward to backward.
    """

    tokens: int
    columns: int
    kept_elements: int = KEPT_ELEMENTS

    @staticmethod
    def fitting(features: Tensor) -> "Tiling":
        """Return tiles of all tokens, up to a bound, that suit the device of features [N, E]."""
        tokens, width = features.shape
        rows = max(1, min(tokens, _TILE_TOKENS))
        columns = CHUNK_ELEMENTS // rows
        if features.device.type == "cpu":
            # Every tile adds to the gradient of all features, which must not outweigh the tile.
            columns = min(columns, max(_CPU_TILE_ELEMENTS // rows, width // 2))
        return Tiling(tokens=rows, columns=max(1, columns // _COLUMN_STEP) * _COLUMN_STEP)

    def tiles(self, tokens: int, vocab_size: int) -> Iterator[tuple[slice, slice]]:
        """Yield the tokens and the part of the vocabulary of each tile."""
        for row in range(0, tokens, self.tokens):
            for column in range(0, vocab_size, self.columns):
                yield (
                    slice(row, min(row + self.tokens, tokens)),
                    slice(column, min(column + self.columns, vocab_size)),
                )


def aligned_logprobs(
    features: Tensor,
    projection: Projection,
    base: BaseLogits,
    labels: Tensor,
    *,
    base_logprobs: Tensor | None = None,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of the labels, and squared norms of the alignment vectors.

    Args:
        features: [N, E], input of the head's last layer.
        projection: That layer.
        base: The base's logits for the same N tokens; no gradient flows into them.
        labels: Integer [N].
        base_logprobs: Log-probabilities of the labels under the base alone, [N], where they are
            known; they are computed from its logits otherwise.
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
        tiling or Tiling.fitting(features),
    )
    return logp, norm, base_logp if base_logprobs is None else base_logprobs


class _AlignedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        projection: Projection,
        base: BaseLogits,
        labels: Tensor,
        wants_base: bool,
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
            work = _Work(features.to(compute_weight.dtype), compute_weight, bias, base, acc_dtype)
            for rows, columns in tiling.tiles(len(features), len(weight)):
                in_tile, local_index = _labels_in(labels[rows], columns)
                logits_CD = base.chunk(rows.start, rows.stop, columns)
                if wants_base:
                    base_picked[rows] += logits_CD.gather(-1, local_index).squeeze(-1) * in_tile
                    base_total[rows] = torch.logaddexp(base_total[rows], logsumexp(logits_CD))
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
                # d logp / d a = onehot(y) - softmax(z + a);  d n / d a = 2 a
                grad = tile.logits.sub_(total[rows, None]).exp_().mul_(-grad_logp[rows, None])
                grad.addcmul_(work.vector(tile.product, columns), 2 * grad_norm[rows, None])
                in_tile, local_index = _labels_in(labels[rows], columns)
                grad.scatter_add_(-1, local_index, (grad_logp[rows] * in_tile)[:, None])
                grads.add(rows, columns, grad)
        return grads.features.to(ctx.features_type), *grads.for_autograd(), *[None] * 5


@dataclass(frozen=True)
class _Tile:
    """W x_t as the product came, z_t + a_t, both [C, D], and the tile's part of n_t, [C]."""

    product: Tensor
    logits: Tensor
    squared_norm: Tensor


@dataclass(frozen=True)
class _Work:
    """What tiles are computed from: x, W (in the products' type), b, z, and the type of sums."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    base: BaseLogits
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
        logits = vector.add_(base_CD)
        return _Tile(product, logits, squared_norm)

    def vector(self, product: Tensor, columns: slice) -> Tensor:
        """Return a_t [C, D]."""
        return product.to(self.acc_dtype, copy=True).add_(self.bias[columns])


class _Gradients:
    """Sums over tiles of the gradients of features [N, E], weight [V, E] and bias [V]."""

    def __init__(self, projection: Projection, work: _Work, tiling: Tiling) -> None:
        self._projection = projection
        self._work = work
        self.features = torch.zeros_like(work.features, dtype=work.acc_dtype)
        if projection.accumulates_grad:
            weight, bias = projection.weight.grad, projection.bias.grad
            assert weight is not None, "a projection that accumulates has gradients"
            assert bias is not None, "a projection that accumulates has gradients"
        else:
            weight = torch.zeros_like(work.weight, dtype=work.acc_dtype)
            bias = torch.zeros_like(work.bias, dtype=work.acc_dtype)
        self._weight, self._bias = weight, bias
        # Products in the compute type, before they are added to sums in the accumulation type.
        self._to_features = torch.empty_like(work.features[: tiling.tokens])
        self._to_weight = torch.empty_like(work.weight[: tiling.columns])

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
        # On a CPU, copying the transpose first makes the product twice as fast.
        grad_T = grad_lowp.t().contiguous()
        product = torch.mm(grad_T, work.features[rows], out=self._to_weight[: len(grad_T)])
        _add(self._weight[columns], product)
        self._bias[columns] += grad.sum(0)

    def for_autograd(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the gradients for autograd, or None where they are accumulated already."""
        layer = self._projection
        if layer.accumulates_grad:
            return None, None
        return self._weight.to(layer.weight.dtype), self._bias.to(layer.bias.dtype)


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
