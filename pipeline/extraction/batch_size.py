"""Tokens per forward pass: as many as memory allows, fewer after running out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

CPU_TOKENS: Final = 2048
"""On a CPU, more than a few hundred tokens enlarge buffers without speeding up products."""
_MOST_TOKENS: Final = 1 << 16
_LEAST_TOKENS: Final = 256
_SPARE: Final = 0.8
"""Share of the free memory that is used; allocators need some headroom."""


@dataclass
class BatchBudget:
    """Maximum tokens of a batch, padding included; a longer pair is a batch by itself.

    Attributes:
        tokens: The bound.
    """

    tokens: int

    def shrink(self) -> None:
        """Halve the budget after running out of memory."""
        self.tokens = max(1, self.tokens // 2)


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Memory of one device, in bytes.

    Attributes:
        free: Memory that is available before a trial.
        taken: The most that a trial allocated on top of what was in use before.
    """

    free: int
    taken: int


def measured_budget(
    devices: Sequence[torch.device], tokens: int, trial: Callable[[], object]
) -> BatchBudget:
    """Measure the budget of accelerators with one batch.

    Args:
        devices: The accelerators that compute.
        tokens: Tokens of the trial.
        trial: Runs a batch.
    """
    for device in devices:
        torch.accelerator.synchronize(device)
        torch.accelerator.reset_peak_memory_stats(device)
    before = {device: torch.accelerator.memory_allocated(device) for device in devices}
    trial()
    memory = []
    for device in devices:
        torch.accelerator.synchronize(device)
        free, _ = torch.accelerator.get_memory_info(device)
        # Memory that PyTorch caches counts as free.
        kept = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(
            device
        )
        taken = torch.accelerator.max_memory_allocated(device) - before[device]
        memory.append(DeviceMemory(free=free + kept, taken=taken))
    return budget_for(memory, tokens)


def budget_for(memory: Sequence[DeviceMemory], tokens: int) -> BatchBudget:
    """Return the budget that the device with the least memory allows.

    Args:
        memory: Measurements of a trial, per device.
        tokens: Tokens of the trial.
    """
    fitting = min(_SPARE * device.free * tokens / max(1, device.taken) for device in memory)
    return BatchBudget(int(min(max(fitting, _LEAST_TOKENS), _MOST_TOKENS)))
