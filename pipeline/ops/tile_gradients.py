"""The gradients of a head's last layer and its input, added up tile by tile.

Letters of shapes are in CONTRIBUTING.md; the features x are the E inputs of the last layer.
"""

from typing import Final

import torch
from torch import Tensor

from mav.pipeline.ops.projection import Projection
from mav.pipeline.ops.tiles import TileWork
from mav.pipeline.ops.tiling import Tiling

_ROWS_AT_ONCE: Final = 128


class TileGradients:
    """Sums over tiles of the gradients of features [N, E], weight [V, E] and bias [V]."""

    def __init__(self, projection: Projection, work: TileWork, tiling: Tiling) -> None:
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
