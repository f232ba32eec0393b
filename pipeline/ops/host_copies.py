"""Arrays on their way from the device to the host, copied while the device computes on."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.pipeline.ops.tensor_storage import to_stored


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
