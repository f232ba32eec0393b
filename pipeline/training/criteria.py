r"""By which figure of an evaluation the best head is chosen, from what a cache alone can say.

Of the P held-out pairs, with m_i = g_w - g_l, what the head added to the margin of a pair in nats,
KL the mean divergence from the base over their tokens, and s the logistic function:

    loss                 the objective with its penalties                            lower is better
    accuracy             share of m_i > 0                                           higher
    scaled_loss          min over c >= 0 of mean -log s(c m_i)                      lower
    margin_per_root_kl   mean m_i / sqrt(KL)                                        higher
    last                 the number of the step                                     higher

The loss asks for margins of a certain size and so is best where a head says little; what decoding
does is decided by alpha, which scales them. `accuracy`, `scaled_loss` and `margin_per_root_kl` do
not change with it: for a small shift, margins grow with alpha and KL with its square. (That is why
there is no margin over KL itself, which is largest for the head that does least.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mav.pipeline.runtime.choices import KeepBy


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A figure of an evaluation.

    Attributes:
        metric: Its name among an evaluation's metrics; None for the number of the step.
        higher: Whether more of it is better.
        words: What it is, in a message.
    """

    metric: str | None
    higher: bool
    words: str

    def value(self, metrics: Mapping[str, float], step: int) -> float:
        """Return it of an evaluation after so many steps."""
        return float(step) if self.metric is None else metrics[self.metric]

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is better than another, and not as good."""
        return value > than if self.higher else value < than


CRITERIA: Final[Mapping[KeepBy, Criterion]] = {
    "loss": Criterion(metric="loss", higher=False, words="held-out loss"),
    "accuracy": Criterion(
        metric="rewards/accuracies", higher=True, words="held-out reward accuracy"
    ),
    "scaled_loss": Criterion(metric="scaled_loss", higher=False, words="scaled held-out loss"),
    "margin_per_root_kl": Criterion(
        metric="margin_per_root_kl", higher=True, words="held-out margin over the root of KL"
    ),
    "last": Criterion(metric=None, higher=True, words="step"),
}

_NARROWEST: Final = 1e-12
"""Where the search for a scale ends, relative to it; the loss is flat there."""


def of_margins(margins: Tensor, kl: float) -> dict[str, float]:
    """Return the criteria that are no plain means.

    Args:
        margins: m_i of the held-out pairs, [P], at least one.
        kl: Mean divergence from the base over their tokens, in nats.
    """
    exact = margins.cpu().double()
    return {
        "scaled_loss": scaled_loss(exact),
        # Of a head that adds nothing both are zero.
        "margin_per_root_kl": float(exact.mean()) / kl**0.5 if kl > 0 else 0.0,
    }


def scaled_loss(margins: Tensor) -> float:
    """Return min over c >= 0 of the mean of -log s(c m), log 2 where no c > 0 is better than 0.

    The derivative in c rises, so its zero is found by halving. Without a margin below zero there is
    none, and the infimum is returned: log 2 times the share of margins that are zero.

    Args:
        margins: float64 [P], finite, at least one.
    """
    if not bool((margins < 0).any()):
        return float((margins == 0).double().mean() * torch.log(torch.tensor(2.0)))
    low, high = 0.0, 1 / float(margins.abs().mean())
    while _slope(margins, high) < 0:
        low, high = high, 2 * high
    while high - low > _NARROWEST * high and high > _NARROWEST / float(margins.abs().max()):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(margins, middle) < 0 else (low, middle)
    return float(torch.nn.functional.softplus(-low * margins).mean())


def _slope(margins: Tensor, scale: float) -> float:
    return -float((margins * torch.sigmoid(-scale * margins)).mean())
