"""The product with the vocabulary that a head's part in the logits comes from."""

import torch
from torch import Tensor


class Projection:
    """The last layer of a head in training, with buffers that outlive a step.

    It may also be a base's output embedding, which is not trained.

    The weight is the largest tensor there is. Its copy in the compute type is made once per step
    and not once per micro-batch, and its gradient is accumulated in place: allocating
    gigabytes again costs more than computing what goes into them.

    Attributes:
        weight: W [V, E].
        bias: b [V], or None.
        trained: Whether gradients of `weight` and `bias` are wanted.
        accumulates_grad: Whether the backward pass itself adds to `weight.grad` and `bias.grad`,
            which must exist. Wrappers that communicate gradients need autograd to do it instead.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        compute_dtype: torch.dtype | None = None,
        *,
        trained: bool = True,
        accumulates_grad: bool = False,
    ) -> None:
        """Describe the layer.

        Args:
            weight: W [V, E].
            bias: b [V], or None.
            compute_dtype: Type of the matrix products; that of `weight` if None. Everything else
                is in float32, or float64 where the weight is.
            trained: See the attribute.
            accumulates_grad: See the attribute.
        """
        self.weight = weight
        self.bias = bias
        self.trained = trained
        self.accumulates_grad = accumulates_grad
        self._dtype = compute_dtype or weight.dtype
        self._compute_weight: Tensor | None = None
        self._is_current = False

    def compute_weight(self) -> Tensor:
        """Return the weight in the type of the products, [V, E]."""
        weight = self.weight.detach()
        if weight.dtype == self._dtype:
            return weight
        if self._compute_weight is None:
            self._compute_weight = torch.empty_like(weight, dtype=self._dtype)
        if not self._is_current:
            self._compute_weight.copy_(weight)
            self._is_current = True
        return self._compute_weight

    def weight_changed(self) -> None:
        """Mark the copy in the compute type as outdated; call this after every optimizer step.

        Fused optimizers do not bump a tensor's version counter, so a change cannot be noticed.
        """
        self._is_current = False
