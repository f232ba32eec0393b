"""Whether a head moves its base at all; one trained too little does not."""

from typing import Final

LEAST_KL: Final = 1e-3
"""Nats a token at alpha 1; below it answers hardly differ from the base's."""


def has_hardly_moved(kl_per_token: float) -> bool:
    """Tell whether a head leaves its base about as it is.

    Args:
        kl_per_token: Mean KL(aligned || base) at alpha 1, in nats per token.
    """
    return kl_per_token < LEAST_KL


def advice(kl_per_token: float, pairs: str, steps: int) -> str:
    """Say what to change about a head that has hardly moved, in one line.

    Args:
        kl_per_token: As above.
        pairs: What pairs it was measured on, such as `64 held-out pairs`.
        steps: Optimizer steps the head took.
    """
    return (
        f"This head hardly moves the base: at alpha 1 the KL is {kl_per_token:.1e} nats per token "
        f"on {pairs}, less than {LEAST_KL:g}, after {steps:,} steps. Train it with a higher "
        f"--learning-rate or more --num-epochs; a smaller --lambda-l2 lets it move further."
    )
