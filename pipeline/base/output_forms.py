"""How a base computes logits from its last state: scale and soft-cap, as its configuration says.

A field of a configuration is only a name. The same `logit_scale` is a factor in one architecture
and ignored in another, so if it is present, both ways are compared with the model's logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from torch import Tensor

from mav.pipeline.ops.base_logits import Unembedding, capped

_MOST_APART: Final = 1e-2
"""Rounding in bfloat16 makes 0.004, another factor or cap than expected far more."""


@dataclass(frozen=True, kw_only=True)
class OutputForm:
    """Scale and soft-cap after the product with the output embedding.

    Attributes:
        scale: Factor on the logits.
        softcap: Bound of the logits, or None.
    """

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, product: Tensor) -> Tensor:
        """Return the logits of a product of last states and output embedding."""
        return capped(product if self.scale == 1.0 else product * self.scale, self.softcap)


def possible_forms(config: Any) -> list[OutputForm]:
    """Return the possible meanings of a configuration, the literal one first."""
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


def is_linear(config: Any, state: Tensor, given: Tensor, product: Tensor, logits: Tensor) -> bool:
    """Return whether logits are products with the last state, scaled and capped.

    Args:
        config: The configuration, for the forms that scale and soft-cap may have.
        state: Last states, [N, hidden].
        given: Input of the output embedding.
        product: Its output, [N, vocab].
        logits: Output of the model, likewise.
    """
    if given.shape != state.shape:
        return False
    forms = possible_forms(config)
    of_forms = [_apart(form.logits(product), logits) for form in forms]
    # Written so that a NaN does not pass.
    return _apart(given, state) <= _MOST_APART and min(of_forms) <= _MOST_APART


def _apart(got: Tensor, expected: Tensor) -> float:
    """Return ||got - expected|| / ||expected||."""
    wide = expected.float()
    return float((got.float().to(wide.device) - wide).norm() / wide.norm().clamp_min(1e-30))


def _number(value: object) -> float | None:
    """Return a value as a non-zero number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value and math.isfinite(value) else None
