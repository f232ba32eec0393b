"""Choosing where to compute."""

import torch

from mav.cache_schema.errors import UsageError


def pick_device(device: str) -> torch.device:
    """Return the named device; for `auto` an accelerator if there is one, else the CPU.

    Raises:
        UsageError: There is no such device.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        # Allocating is the one check that holds for every kind of device.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: got {device!r}, which is not available: {reason}") from error
