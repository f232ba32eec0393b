"""What a head adds to the logits of cached tokens, in the one form that all kinds have."""

from dataclasses import dataclass

from torch import Tensor

from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.base_logits import BaseLogits, FactoredLogits
from mav.pipeline.ops.projection import Projection


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The parts of c(z + alpha (W x + b)), the logits of N tokens under a head.

    Attributes:
        features: x, [N, E]; gradients flow into the head through it.
        projection: W and b.
        base: z, the base's logits, before their soft-cap where `softcap` is one.
        softcap: Of c; None where the vector is added to what the base returns.
    """

    features: Tensor
    projection: Projection
    base: BaseLogits
    softcap: float | None = None


def addition(
    head: AlignmentHead, states: Tensor, base: BaseLogits, projection: Projection
) -> Addition:
    """Return what a head adds at N tokens.

    Args:
        head: The head.
        states: What it reads, [N, K, width].
        base: The base's logits for these tokens; those of a `factored` cache for a head that acts
            on the state (see `compatibility.check_kind`).
        projection: The head's last layer, where it acts on the logits. Else the base's output
            embedding takes its place, x is the shift f times the scale of the base's logits, and
            the base's soft-cap is around both, as in a pass of the model.
    """
    features = head.features(states)
    if not head.config.acts_on_state:
        return Addition(features=features, projection=projection, base=base)
    assert isinstance(base, FactoredLogits), "the cache was checked"
    unembedding = base.unembedding
    return Addition(
        features=head.project(features) * unembedding.scale,
        projection=Projection(unembedding.weight, None, trained=False),
        base=base.before_softcap(),
        softcap=unembedding.softcap,
    )
