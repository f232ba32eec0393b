"""What is compared: kinds of head, each at one size, and recipes to train them by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import HeadKind

SIZES: Final[Mapping[HeadKind, Mapping[str, int]]] = {
    "bottleneck": {"rank": 64},
    "unembedding": {},
    "mlp": {"expansion_size": 256},
}
"""Options of each kind that give it its size: some 1 to 14 million parameters on SmolLM2-135M."""

RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "sigmoid": {},
    "kl": {"lambda_kl": 1.0, "lambda_l2": 0.0},
    "ema": {"ema": 0.99},
    "ipo": {"objective": "ipo", "beta": 1.0},
    "sft": {"lambda_sft": 1.0},
    "credit": {"objective": "credit"},
}
"""Fields of `TrainOptions` that differ from the defaults, beside those of `Variant`."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing to train, whose every field decides the result.

    Attributes:
        head_type: Kind of the head.
        recipe: Name of what it is trained by.
        learning_rate: Peak rate.
        num_epochs: Passes over the training pairs.
        eval_fraction: Share of prompts held out, by their hash.
        seed: Of initialisation, order and dropout.
    """

    head_type: HeadKind
    recipe: str
    learning_rate: float
    num_epochs: int
    eval_fraction: float
    seed: int

    def options(self) -> dict[str, Any]:
        """Return the fields of `TrainOptions` that say so."""
        return {
            "head_type": self.head_type,
            **SIZES[self.head_type],
            "learning_rate": self.learning_rate,
            "num_epochs": self.num_epochs,
            "eval_fraction": self.eval_fraction,
            "seed": self.seed,
            **RECIPES[self.recipe],
        }


def variants(
    kinds: Sequence[HeadKind], recipes: Sequence[str], seeds: Sequence[int], **more: Any
) -> Iterator[Variant]:
    """Yield what to train, a whole comparison with the first seed first.

    Args:
        kinds: Kinds of head.
        recipes: Names of recipes.
        seeds: Seeds.
        more: The other fields of `Variant`.

    Raises:
        UsageError: A name is none of those there are.
    """
    for option, names, known in (("--kinds", kinds, SIZES), ("--recipes", recipes, RECIPES)):
        for name in names:
            if name not in known:
                raise UsageError(f"{option}: got {name!r}, expected some of {', '.join(known)}")
    for seed in seeds:
        for recipe in recipes:
            for kind in kinds:
                yield Variant(head_type=kind, recipe=recipe, seed=seed, **more)
