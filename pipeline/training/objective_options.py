"""What the objective of a training run is asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.argument_names import NamedArguments
from mav.pipeline.runtime.choices import ObjectiveName
from mav.pipeline.runtime.options import check_options, option

if TYPE_CHECKING:
    from mav.pipeline.training.objectives import Objective

_OF_ONE: Final = (
    ("label_smoothing", "robust"),
    ("simpo_gamma", "simpo"),
    ("credit_discount", "credit"),
)
_LAMBDA_L2: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(NamedArguments):
    """What a head is trained to do.

    Attributes:
        objective: See `Objective`; `sigmoid` becomes `dpo`, which is the same.
        beta: Inverse temperature of the objective; if None 0.1, and for objectives of means over
            tokens `BETAS`.
        label_smoothing: Of `robust` alone: the share of pairs the wrong way round; 0.1 if None.
        simpo_gamma: Of `simpo` alone: the margin aimed at; 0.5 if None.
        credit_discount: Of `credit` alone: what a token's credit counts of each further token, from
            0 to 1; 0.5 if None.
        ld_alpha: Weight of the tokens that only the longer response of a pair has; 1 if None.
        lambda_l2: Weight of the penalty on alignment vectors; if None 0.001, but 0 of `credit` and
            of `unembedding` heads, whose every shift changes all logits.
        lambda_kl: Weight of the penalty on the divergence from the base, in nats per token.
        lambda_sft: Weight of the chosen response's negative log-likelihood per token.
    """

    objective: ObjectiveName = option(
        "dpo",
        choices=get_args(ObjectiveName),
        help="dpo is anchored to the base's own margin; mav is the published objective; credit "
        "reads from the states which tokens earned the preference; the others are named as in TRL.",
    )
    beta: float | None = option(
        None,
        number=True,
        above=0,
        default_text="0.1; sigmoid_norm 5, simpo 2, credit 1",
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
    credit_discount: float | None = option(
        None,
        number=True,
        at_least=0,
        at_most=1,
        default_text="0.5",
        help="Of credit: what a token's credit counts of each further token.",
    )
    ld_alpha: float | None = option(
        None,
        number=True,
        at_least=0,
        at_most=1,
        default_text="1",
        help="Weight of tokens that only the longer answer has.",
    )
    lambda_l2: float | None = option(
        None,
        number=True,
        at_least=0,
        default_text="0.001; 0 of credit and of unembedding heads",
        help="Penalty on alignment vectors.",
    )
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
        if self.objective == "credit" and self.ld_alpha is not None:
            raise UsageError(
                f"ld_alpha: got {self.ld_alpha} with `objective` credit, expected none; it weighs "
                f"tokens of preference losses"
            )
        if self.objective == "sigmoid":
            object.__setattr__(self, "objective", "dpo")

    def as_objective(self) -> "Objective":
        """Return the objective these options describe."""
        from mav.pipeline.training.objectives import (
            BETAS,
            DEFAULT_BETA,
            DEFAULT_CREDIT_DISCOUNT,
            DEFAULT_LABEL_SMOOTHING,
            DEFAULT_SIMPO_GAMMA,
            Objective,
        )

        smoothing, gamma = self.label_smoothing, self.simpo_gamma
        discount = self.credit_discount
        return Objective(
            name=self.objective,
            beta=BETAS.get(self.objective, DEFAULT_BETA) if self.beta is None else self.beta,
            lambda_l2=self._default_lambda_l2() if self.lambda_l2 is None else self.lambda_l2,
            lambda_kl=self.lambda_kl,
            lambda_sft=self.lambda_sft,
            ld_alpha=self.ld_alpha,
            label_smoothing=DEFAULT_LABEL_SMOOTHING if smoothing is None else smoothing,
            simpo_gamma=DEFAULT_SIMPO_GAMMA if gamma is None else gamma,
            credit_discount=DEFAULT_CREDIT_DISCOUNT if discount is None else discount,
        )

    def _default_lambda_l2(self) -> float:
        return 0.0 if self.objective == "credit" else _LAMBDA_L2
