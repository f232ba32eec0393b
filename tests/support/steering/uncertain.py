"""What plain passes say where only tokens are steered of which the base is uncertain enough."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from tests.support.steering.several import summed_logits


@torch.no_grad()
def entropies(base: BaseModel, text: Tensor) -> Tensor:
    """Of the base's distributions at every position of texts [B, S], float64, in nats."""
    logprobs = base.model(text, use_cache=False).logits.double().log_softmax(-1)
    found: Tensor = -(logprobs.exp() * logprobs).sum(-1)
    return found


def limit_between(values: Tensor) -> float:
    """A limit that about half of some entropies exceed, and that none comes near."""
    ordered = values.flatten().sort().values
    middle = ordered[len(ordered) // 4 : -(len(ordered) // 4)]
    at = int(middle.diff().argmax())
    return float(middle[at : at + 2].mean())


@torch.no_grad()
def limited_logits(
    mav: MAVInference,
    untouched: BaseModel,
    text: Tensor,
    alphas: Sequence[Sequence[float]],
    limits: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The logits of texts [B, S], and which positions are steered.

    Args:
        mav: Whose heads to use.
        untouched: The base, loaded once more.
        text: Token ids.
        alphas: Of each text, one for each head.
        limits: Of each text, in nats.
    """
    above = entropies(untouched, text) > torch.tensor(limits)[:, None]
    used = torch.tensor([[any(row)] for row in alphas])
    steered = above & used
    plain = untouched.model(text, use_cache=False).logits
    aligned = summed_logits(mav, untouched, text, alphas)
    return torch.where(steered[..., None], aligned, plain), steered


def calls_of_heads(mav: MAVInference, run: Callable[[], object]) -> list[int]:
    """How many positions each call of a head was for, while something ran."""
    calls: list[int] = []
    handles = [
        head.register_forward_pre_hook(lambda _, args: calls.append(args[0][..., 0, 0].numel()))
        for head in mav.joined.aligned.heads
    ]
    run()
    for handle in handles:
        handle.remove()
    return calls
