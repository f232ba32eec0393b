"""What the objective of a training run is asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.choices import ObjectiveName
from mav.pipeline.runtime.options import check_options, option

if TYPE_CHECKING:
    from mav.pipeline.training.objectives import Objective

_OF_ONE: Final = (("label_smoothing", "robust"), ("simpo_gamma", "simpo"))


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(NamedArguments):
    """What a head is trained to do.

    Attributes:
        objective: See `Objective`; `sigmoid` becomes `dpo`, which is the same.
        beta: Inverse temperature of the objective; if None 0.1, and for objectives of means over
            tokens `BETAS`.
        label_smoothing: Of `robust` alone: the share of pairs the wrong way round; 0.1 if None.
        simpo_gamma: Of `simpo` alone: the margin aimed at; 0.5 if None.
        ld_alpha: Weight of the tokens that only the longer response of a pair has; 1 if None.
        lambda_l2: Weight of the penalty on alignment vectors.
        lambda_kl: Weight of the penalty on the divergence from the base, in nats per token.
        lambda_sft: Weight of the chosen response's negative log-likelihood per token.
    """

    objective: ObjectiveName = option(
        "dpo",
        choices=get_args(ObjectiveName),
        help="dpo is anchored to the base's own margin; mav is the published objective; the "
        "others are named as in TRL.",
    )
    beta: float | None = option(
        None,
        number=True,
        above=0,
        default_text="0.1; sigmoid_norm 5, simpo 2",
        help="Inverse temperature of the objective.",
    )
    label_smoothing: float | None = option(
        None,
        number=True,
        at_least=0,
        below=0.5,
        default_text="0.1",
        help="Of robust: share of pairs the wrong way round.",
    )
    simpo_gamma: float | None = option(
        None, number=True, at_least=0, default_text="0.5", help="Of simpo: the margin aimed at."
    )
    ld_alpha: float | None = option(
        None,
        number=True,
        at_least=0,
        at_most=1,
        default_text="1",
        help="Weight of tokens that only the longer answer has.",
    )
    lambda_l2: float = option(0.001, number=True, at_least=0, help="Penalty on alignment vectors.")
    lambda_kl: float = option(
        0.0, number=True, at_least=0, help="Penalty on KL to the base, per token."
    )
    lambda_sft: float = option(
        0.0, number=True, at_least=0, help="Weight of the chosen answer's loss per token."
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name, objective in _OF_ONE:
            if getattr(self, name) is not None and self.objective != objective:
                raise UsageError(
                    f"{name}: got {getattr(self, name)} with `objective` {self.objective}, "
                    f"expected none; it is of {objective}"
                )
        if self.objective == "sigmoid":
            object.__setattr__(self, "objective", "dpo")

    def as_objective(self) -> "Objective":
        """Return the objective these options describe."""
        from mav.pipeline.training.objectives import (
            BETAS,
            DEFAULT_BETA,
            DEFAULT_LABEL_SMOOTHING,
            DEFAULT_SIMPO_GAMMA,
            Objective,
        )

        smoothing, gamma = self.label_smoothing, self.simpo_gamma
        return Objective(
            name=self.objective,
            beta=BETAS.get(self.objective, DEFAULT_BETA) if self.beta is None else self.beta,
            lambda_l2=self.lambda_l2,
            lambda_kl=self.lambda_kl,
            lambda_sft=self.lambda_sft,
            ld_alpha=self.ld_alpha,
            label_smoothing=DEFAULT_LABEL_SMOOTHING if smoothing is None else smoothing,
            simpo_gamma=DEFAULT_SIMPO_GAMMA if gamma is None else gamma,
        )
