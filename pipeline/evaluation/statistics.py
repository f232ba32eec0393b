"""Intervals of reported figures, and the KL below which a head hardly changes its base."""

import math
from typing import Final

from torch import Tensor

LEAST_KL: Final = 1e-3
"""Nats per token at alpha 1; below it responses hardly differ from the base's."""

_Z: Final = 1.959964
"""Half of a 95 % interval, in standard deviations."""


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
    exact = values.cpu().double()
    mean = float(exact.mean())
    if len(exact) == 1:
        return mean, None
    half = _Z * float(exact.std()) / math.sqrt(len(exact))
    return mean, (mean - half, mean + half)


def has_hardly_moved(kl_per_token: float) -> bool:
    """Return whether a head leaves its base about as it is, mostly for want of training.

    Args:
        kl_per_token: Mean KL(aligned || base) at alpha 1, in nats per token.
    """
    return kl_per_token < LEAST_KL


def advice(kl_per_token: float, pairs: str, steps: int) -> str:
    """Return one line on what to change about a head that has hardly moved.

    Args:
        kl_per_token: Mean KL(aligned || base) at alpha 1, in nats per token.
        pairs: The pairs it was measured on, such as `64 held-out pairs`.
        steps: Optimizer steps the head took.
    """
    return (
        f"This head hardly moves the base: at alpha 1 the KL is {kl_per_token:.1e} nats per token "
        f"on {pairs}, less than {LEAST_KL:g}, after {steps:,} steps. Train it with a higher "
        f"learning rate or for more epochs; a smaller penalty (lambda_l2) lets it move further."
    )
