"""Bounding the memory that CPU kernels for matrices of many shapes hold.

oneDNN keeps the last 1,024 kernels it made, one for each shape, and a kernel for bfloat16 products
with a vocabulary takes about 20 MB. Packed batches hardly ever have the same number of tokens, so
training grew by 25 MB a step. Few shapes come again; making a kernel anew costs a millisecond.
"""

import os
from typing import Final

_KERNELS: Final = "16"


def bound_kernel_cache() -> None:
    """Let oneDNN keep few kernels; it reads this when it makes its first, so call it early."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)
