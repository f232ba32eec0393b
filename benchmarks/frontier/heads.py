"""The heads that are compared: what each is made of, and how it is trained.

Kinds are those of `mav train --head-type`. All are trained on the same cache; what an entry does
not say is the same for all. A variant differs from one of them in a single option of training.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mav.pipeline.runtime.choices import HeadKind, ObjectiveName

_LAMBDA_L2: Final = 0.001
_RANK: Final = 64
_BOTTLENECK_RANK: Final = 256
_ALPHAS: Final = (1, 2, 4, 8)
_SMALL_ALPHAS: Final = (0.25, 0.5, 1, 2)
_CREDIT_ALPHAS: Final = (0.5, 1, 2, 4)
_LARGE_ALPHAS: Final = (32, 64, 128)
"""Of heads that the penalty holds near the base: a shift of the state changes every logit."""


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """A head and its training, but for the rate.

    Attributes:
        name: Name of its training run.
        label: What it is called in the table.
        kind: What it is made of and acts on.
        rank: Width of its narrow layer; None for an `unembedding` without one, and an `mlp`.
        objective: What it is trained by.
        lambda_l2: Penalty on what it adds; None for what `mav train` has for kind and objective.
        dropout: Dropout; the kind's own if None.
        epochs: Passes over the pairs; those of the experiment if None.
        alphas: Strengths of the last head's curve, chosen by the KL that they have alone.
    """

    name: str
    label: str
    kind: HeadKind = "mlp"
    rank: int | None = None
    objective: ObjectiveName = "dpo"
    lambda_l2: float | None = _LAMBDA_L2
    dropout: float | None = None
    epochs: int | None = None
    alphas: tuple[float, ...] = _ALPHAS


MLP: Final = HeadChoice(name="mav", label="mlp")
UNEMBEDDING: Final = HeadChoice(
    name="mav-unembedding",
    label="unembedding",
    kind="unembedding",
    lambda_l2=None,
    alphas=_SMALL_ALPHAS,
)
NARROW: Final = HeadChoice(
    name=f"mav-unembedding-{_RANK}",
    label=f"unembedding, rank {_RANK}",
    kind="unembedding",
    rank=_RANK,
    alphas=_LARGE_ALPHAS,
)
BOTTLENECK: Final = HeadChoice(
    name="mav-bottleneck",
    label=f"bottleneck, rank {_BOTTLENECK_RANK}",
    kind="bottleneck",
    rank=_BOTTLENECK_RANK,
)
CREDIT: Final = HeadChoice(
    name="mav-unembedding-credit",
    label="unembedding, `credit`",
    kind="unembedding",
    objective="credit",
    lambda_l2=None,
    alphas=_CREDIT_ALPHAS,
)
MLP_CREDIT: Final = HeadChoice(
    name="mav-credit",
    label="mlp, `credit`",
    objective="credit",
    lambda_l2=None,
    alphas=_CREDIT_ALPHAS,
)
HEADS: Final[Sequence[HeadChoice]] = (MLP, UNEMBEDDING, NARROW, BOTTLENECK, CREDIT, MLP_CREDIT)


def _variant(name: str, label: str, **changes: object) -> HeadChoice:
    told = {"name": f"{NARROW.name}-{name}", "label": f"{NARROW.label}, {label}"}
    return dataclasses.replace(NARROW, **told, **changes)  # type: ignore[arg-type]


VARIANTS: Final[Sequence[HeadChoice]] = (
    _variant("one-epoch", "one epoch", epochs=1),
    _variant("no-penalty", "no penalty", lambda_l2=0.0, alphas=_SMALL_ALPHAS),
    _variant("more-penalty", "tenfold penalty", lambda_l2=10 * _LAMBDA_L2),
    _variant("per-token", "`sigmoid_norm`", objective="sigmoid_norm"),
    _variant("half-dropped", "dropout 0.5", dropout=0.5),
)
"""What is searched, on the tuning prompts, for a head that generalises better."""
