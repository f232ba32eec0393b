"""The last layer of a head while it is trained."""

import torch
from torch import Tensor


class Projection:
    """The last layer of a head in training, with memory that outlives a step.

    The weight is the largest tensor there is. Its narrow copy is made once per step and not once a
    micro-batch, and its gradient is accumulated in place rather than allocated again:
    gigabytes of memory new to a process cost more than computing what goes into them.

    Attributes:
        weight: W [V, E].
        bias: b [V].
        accumulates: Whether the backward pass adds to `weight.grad` and `bias.grad`, which must
            exist, by itself. Wrappers that communicate gradients need autograd to do it instead.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        compute_dtype: torch.dtype | None = None,
        *,
        accumulates: bool = False,
    ) -> None:
        """Describe the layer.

        Args:
            weight: W [V, E].
            bias: b [V].
            compute_dtype: Type of the matrix products; that of `weight` if None. Everything else
                is in float32, or float64 where the weight is.
            accumulates: See the attribute.
        """
        self.weight = weight
        self.bias = bias
        self.accumulates = accumulates
        self._dtype = compute_dtype or weight.dtype
        self._narrow: Tensor | None = None
        self._is_current = False

    def narrow(self) -> Tensor:
        """Return the weight as the products take it."""
        weight = self.weight.detach()
        if weight.dtype == self._dtype:
            return weight
        if self._narrow is None:
            self._narrow = torch.empty_like(weight, dtype=self._dtype)
        if not self._is_current:
            self._narrow.copy_(weight)
            self._is_current = True
        return self._narrow

    def weight_changed(self) -> None:
        """Make the low-precision copy again when it is next used.

        To be called after every change: fused optimizers do not bump the version counter.
        """
        self._is_current = False
