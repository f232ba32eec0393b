"""What torch's CPU kernels read from the environment, set before torch is first imported.

- oneDNN keeps the last 1,024 kernels it made, one for each shape, and a kernel for bfloat16
  products with a vocabulary takes about 20 MB. Packed batches hardly ever have the same number of
  tokens, so training grew by 25 MB per step. Few shapes recur; making a kernel again costs a
  millisecond.
- Training uses buffers of gigabytes. In huge pages their first use is about ten times as fast.

Variables that the user has set are not changed.
"""

import os
from typing import Final

_SETTINGS: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "THP_MEM_ALLOC_ENABLE": "1"}


def set_cpu_environment() -> None:
    """Set variables that are not set yet."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
