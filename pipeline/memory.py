"""Running out of memory, and what to do then."""

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice, on an accelerator or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU's allocator has no exception of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory() -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
