"""How a base computes logits from its last state: scale and soft-cap, as its configuration says.

A field of a configuration is only a name. The same `logit_scale` is a factor in one architecture
and not looked at in another, so where there is one, both ways are compared with the model's logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from mav.pipeline.ops.base_logits import Unembedding


@dataclass(frozen=True, kw_only=True)
class OutputForm:
    """Scale and soft-cap after the product with the output embedding.

    Attributes:
        scale: Factor on the logits.
        softcap: Bound of the logits, or None.
    """

    scale: float = 1.0
    softcap: float | None = None


def possible_forms(config: Any) -> list[OutputForm]:
    """Return the forms a configuration may mean, the literal one first."""
    factor = _number(getattr(config, "logit_scale", None))
    divisor = _number(getattr(config, "logits_scaling", None))
    named = [factor, None if divisor is None else 1.0 / divisor, 1.0]
    scales = dict.fromkeys(scale for scale in named if scale is not None)
    softcaps = dict.fromkeys([_number(getattr(config, "final_logit_softcapping", None)), None])
    return [OutputForm(scale=scale, softcap=cap) for scale, cap in product(scales, softcaps)]


def closest(candidates: Sequence[Unembedding], states: Tensor, logits: Tensor) -> Unembedding:
    """Return the unembedding whose logits [N, vocab] of states [N, hidden] are nearest."""
    wanted = logits.double()

    def distance(candidate: Unembedding) -> float:
        norm = float((candidate(states).double() - wanted).norm())
        return norm if math.isfinite(norm) else math.inf

    return min(candidates, key=distance)


def _number(value: object) -> float | None:
    """Return a value as a non-zero number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value and math.isfinite(value) else None
