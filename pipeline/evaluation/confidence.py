"""95 % intervals for reported figures."""

import math
from typing import Final

from torch import Tensor

_Z: Final = 1.959964


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, z2 = successes / trials, _Z * _Z
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (_Z / (1 + z2 / trials)) * math.sqrt(
        share * (1 - share) / trials + z2 / (4 * trials * trials)
    )
    return max(0.0, center - half), min(1.0, center + half)


def mean_interval(values: Tensor) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of independent values [n] and its normal interval, None for one value."""
    wide = values.cpu().double()
    mean = float(wide.mean())
    if len(wide) == 1:
        return mean, None
    half = _Z * float(wide.std()) / math.sqrt(len(wide))
    return mean, (mean - half, mean + half)
