r"""Log-probabilities under the aligned model, without tokens x vocabulary ever existing at once.

For features x, projection W, b and base logits z, per token t with label y:

    a_t = W x_t + b,    logp_t = log softmax(z_t + a_t)[y_t],    n_t = ||a_t||^2

The vocabulary is the largest dimension here by far, so tokens are taken in chunks; the backward
pass computes each chunk again rather than keep it, and adds into one gradient of W.

Shape legend: N tokens, E features, V vocabulary, C tokens of a chunk.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.base_logits import BaseLogits

CHUNK_ELEMENTS: Final = 1 << 26
"""Elements of the largest temporary, C x V: 256 MiB in float32."""


def aligned_logprobs(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    base: BaseLogits,
    labels: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the labels, and squared norms of the alignment vectors.

    Args:
        features: [N, E], input of the head's last layer.
        weight: W [V, E].
        bias: b [V].
        base: The base's logits for the same N tokens; no gradient flows into them.
        labels: Integer [N].
        compute_dtype: Type of the matrix products; that of `weight` if None. Everything else is
            in float32, or float64 where the weight is.
        chunk: Tokens at once; by default as many as keep the temporary under 256 MiB.

    Returns:
        `logp` [N] and `squared_norm` [N], float32 (float64 for a float64 weight).
    """
    dtype = compute_dtype or weight.dtype
    size = chunk or max(1, CHUNK_ELEMENTS // weight.shape[0])
    logp, norm = _AlignedLogprobs.apply(features, weight, bias, base, labels.long(), dtype, size)  # type: ignore[no-untyped-call]
    return logp, norm


class _AlignedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        base: BaseLogits,
        labels: Tensor,
        dtype: torch.dtype,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        logp = torch.empty(len(features), dtype=wide, device=features.device)
        norm = torch.empty_like(logp)
        # The autocast that may be on would cast what is chosen with care here.
        with torch.autocast(features.device.type, enabled=False):
            cast = weight.to(dtype)
            for start in range(0, len(features), chunk):
                piece = slice(start, start + chunk)
                vector = _vector(features[piece], cast, bias, dtype, wide)
                norm[piece] = torch.linalg.vector_norm(vector, dim=-1).square_()
                vector += base.chunk(start, start + len(vector))
                logp[piece] = -F.cross_entropy(vector, labels[piece], reduction="none")
        # The narrow copy is kept: making it again would read the whole weight once more.
        ctx.save_for_backward(features, weight, bias, labels, cast)
        ctx.base, ctx.dtype, ctx.chunk = base, dtype, chunk
        return logp, norm

    @staticmethod
    def backward(ctx: Any, grad_logp: Tensor, grad_norm: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, labels, cast = ctx.saved_tensors
        dtype, chunk = ctx.dtype, ctx.chunk
        wide = torch.promote_types(weight.dtype, torch.float32)
        grad_features = torch.empty_like(features)
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=wide)
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk):
                piece = slice(start, start + chunk)
                vector = _vector(features[piece], cast, bias, dtype, wide)
                # d logp / d a = onehot(y) - softmax(z + a);  d n / d a = 2 a
                probs = ctx.base.chunk(start, start + len(vector)).to(wide).add_(vector).softmax(-1)
                grad = vector.mul_(2 * grad_norm[piece, None])
                grad -= probs.mul_(grad_logp[piece, None])
                grad.scatter_add_(-1, labels[piece, None], grad_logp[piece, None].to(grad.dtype))
                grad_bias += grad.sum(0)
                narrow = grad.to(dtype)
                grad_features[piece] = narrow @ cast
                # On a CPU, copying the transpose first makes the product twice as fast.
                product = narrow.t().contiguous() @ features[piece].to(dtype)
                grad_weight = product.to(wide) if grad_weight is None else grad_weight.add_(product)
        if grad_weight is None:
            grad_weight = torch.zeros_like(weight, dtype=wide)
        return grad_features, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), *[None] * 4


def _vector(
    features: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, wide: torch.dtype
) -> Tensor:
    """Return alignment vectors [C, V], the product in `dtype`, the rest in `wide`."""
    return F.linear(features.to(dtype), weight).to(wide) + bias
