"""The rate of a square product, to which other rates are compared."""

from typing import Final

import torch

from benchmarks.synthetic import timed

_MATMULS: Final = 5
_LEAST_SECONDS: Final = 0.05
"""Of one measurement of the product; on accelerators it takes many of them."""


def best_matmul_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the best of several rates of a square product, in operations per second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)

    multiply(1)
    once = timed(device, lambda: multiply(1))
    count = max(1, round(_LEAST_SECONDS / once))
    best = min(timed(device, lambda: multiply(count)) for _ in range(_MATMULS))
    return 2 * size**3 * count / best
