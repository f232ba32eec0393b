"""Between tensors and the arrays of a cache, without converting a bit."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.runtime.compute_dtype import TORCH_DTYPES


def require_holds(tensor: Tensor, dtype: str, what: str) -> None:
    """Refuse to store finite values that a type has no numbers for.

    Raises:
        BaseModelError: They overflow, naming `what`.
    """
    if tensor.isfinite().all() and not tensor.to(TORCH_DTYPES[dtype]).isfinite().all():
        raise BaseModelError(too_large(dtype, what))


def too_large(dtype: str, what: str) -> str:
    """Return the message about values that a storage type has no numbers for."""
    return (
        f"{what} reach values that {dtype} cannot hold. Store them with --storage-dtype bfloat16, "
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
