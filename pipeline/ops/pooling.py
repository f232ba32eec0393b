"""Pooling hidden states to the width the head was built for."""

import torch.nn.functional as F
from torch import Tensor


def pool_states(states: Tensor, size: int) -> Tensor:
    """Pool the last dimension to `size` by adaptive average pooling, down or up, no parameters.

    Args:
        states: [..., width], any floating type; averages are taken in float32 at least.
        size: Width wanted.

    Returns:
        [..., size], of the type of `states`; `states` itself where the width is right already.
    """
    if states.shape[-1] == size:
        return states
    wide = states if states.element_size() >= 4 else states.float()
    flat = wide.reshape(-1, 1, wide.shape[-1])
    return F.adaptive_avg_pool1d(flat, size).reshape(*states.shape[:-1], size).to(states.dtype)
