"""The strength that a head is recommended with, and what was measured of it by alpha."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What a head does to held-out pairs at one strength; see `AlphaResult`.

    Attributes:
        alpha: The strength.
        reward_accuracy: Share of pairs whose chosen response gained more; None at alpha 0.
        logp_accuracy: Share of pairs whose chosen response is the more probable one.
        margin: In nats.
        kl_per_token: In nats.
    """

    alpha: float
    reward_accuracy: float | None
    logp_accuracy: float
    margin: float
    kl_per_token: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The strength at which a head reaches a KL from its base, on pairs it was not trained on.

    Attributes:
        alpha: The strength.
        target_kl: The KL per token that was asked for, in nats.
        kl_per_token: The KL there.
        pairs: Number of held-out pairs.
        curve: What was measured, by alpha.
    """

    alpha: float
    target_kl: float
    kl_per_token: float
    pairs: int
    curve: tuple[CurvePoint, ...] = ()


def recommendation_of(value: Any) -> Recommendation | None:
    """Return the recommendation that a head's configuration holds, or None where it has none.

    Args:
        value: Its member `recommended`.

    Raises:
        ValueError: The strength is not a finite number.
        TypeError: It has other members.
        KeyError: It has no curve.
    """
    if value is None:
        return None
    curve = tuple(CurvePoint(**point) for point in value["curve"])
    found = Recommendation(**{**value, "curve": curve})
    if not math.isfinite(found.alpha):
        raise ValueError(f"recommended.alpha: got {found.alpha}, expected a finite number")
    return found
