"""Hidden states between a model and a cache: pooled, copied to the host, stored as arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES


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


def require_holds(tensor: Tensor, dtype: str, what: str) -> None:
    """Refuse to store finite values that a type has no numbers for.

    Args:
        tensor: The values.
        dtype: The type they are to be stored in.
        what: What they are, for the message.

    Raises:
        BaseModelError: They overflow, naming `what`.
    """
    if tensor.isfinite().all() and not tensor.to(TORCH_DTYPES[dtype]).isfinite().all():
        raise BaseModelError(too_large(dtype, what))


def too_large(dtype: str, what: str) -> str:
    """Return the message about values that a storage type has no numbers for."""
    return (
        f"{what} reach values that {dtype} cannot hold. Store them with `storage_dtype` bfloat16, "
        f"which has float32's range."
    )


def to_stored(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's values on the CPU as the cache stores them: bfloat16 as uint16 bits."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def from_stored(values: NDArray[Any], dtype: str) -> Tensor:
    """Return stored states or logits as a tensor of their true type, sharing memory if it can."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


class HostCopies:
    """Copies of tensors to the host, started on construction and waited for on access.

    On accelerators they go to pinned memory, which PyTorch keeps for the next ones, without holding
    up the program. On a CPU nothing is copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin to copy.

        Args:
            tensors: By name, all on one device; nothing may change them any more.
        """
        self._ready: torch.Event | None = None
        self._tensors = dict(tensors)
        device = next(iter(self._tensors.values())).device
        if device.type == "cpu":
            return
        for name, tensor in tensors.items():
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensors[name] = pinned.copy_(tensor, non_blocking=True)
        self._ready = torch.Event(device)
        self._ready.record()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as a cache stores them, once all of them are there."""
        if self._ready is not None:
            self._ready.synchronize()
        return {name: to_stored(tensor) for name, tensor in self._tensors.items()}
