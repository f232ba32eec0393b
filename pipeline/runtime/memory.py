"""Running out of memory, and what to do then."""

import gc
from typing import Final

import torch

from mav.cache_schema.errors import BaseModelError

PROMPT_OUT_OF_MEMORY: Final = (
    "out of memory for this prompt alone; shorten it or lower `max_new_tokens`"
)
_SAID: Final = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Messages of errors without their own type: of allocators of CPU, MPS and other libraries."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports running out of memory, on an accelerator or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


def free_memory() -> None:
    """Free memory that is no longer in use."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def too_long_for_memory(base: str, tokens: int) -> BaseModelError:
    """Return the exception for running out of memory with a single pair.

    Args:
        base: What the base is called.
        tokens: Tokens of the pair.
    """
    return BaseModelError(
        f"{base}: out of memory for a single pair of {tokens} tokens. Use a smaller "
        f"`max_length`, `quantize`, or `device_map` auto on a machine with more."
    )
