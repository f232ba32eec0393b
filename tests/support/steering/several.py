"""A tiny base under several heads, and what plain passes and separate sums say of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import AttachOptions
from mav.pipeline.decoding.steering.trained_heads import TrainedHeads
from mav.pipeline.decoding.switching import SwitchableModel
from mav.pipeline.decoding.trained_head import TrainedHead, new_head
from mav.pipeline.runtime.choices import HeadKind
from mav.pipeline.runtime.load_options import LoadOptions
from tests.support.models.tiny import HIDDEN
from tests.support.steering.heads import size_option
from tests.support.steering.steered import LAYER_INDICES


def made_head(base: BaseModel, kind: HeadKind, seed: int, *, size: int = HIDDEN) -> TrainedHead:
    """A head whose every weight follows from a seed."""
    torch.manual_seed(seed)
    made = new_head(base, pooled_size=size, **size_option(kind, 24))
    torch.nn.init.normal_(made.head.project.weight, std=0.2)
    return made


def together(base: BaseModel, **parts: TrainedHead) -> MAVInference:
    """A base under several heads by name."""
    return _attached(base, TrainedHeads(parts=tuple(parts.values()), names=tuple(parts)))


def alone_on(base: BaseModel, head: TrainedHead) -> MAVInference:
    """A base under one head without a name."""
    return _attached(base, TrainedHeads(parts=(head,)))


def _attached(base: BaseModel, trained: TrainedHeads) -> MAVInference:
    mav = MAVInference.__new__(MAVInference)
    placement = LoadOptions(dtype=base.dtype, device="cpu")
    mav._begin(SwitchableModel(base, trained, AttachOptions(), placement))
    return mav


def steered_by(base: BaseModel, *kinds: HeadKind) -> MAVInference:
    """A base under a head of each kind, called `a`, `b` and so on, all of them different."""
    names = "abcdef"[: len(kinds)]
    parts = {
        name: made_head(base, kind, ord(name)) for name, kind in zip(names, kinds, strict=True)
    }
    return together(base, **parts)


@torch.no_grad()
def summed_logits(
    mav: MAVInference, untouched: BaseModel, text: Tensor, alphas: Sequence[Sequence[float]]
) -> Tensor:
    """The logits of texts [B, S], from a plain pass and each head computed by itself.

    Args:
        mav: Whose heads to use.
        untouched: The base, loaded once more.
        text: Token ids.
        alphas: Of each text, one for each head.
    """
    output = untouched.model(text, output_hidden_states=True, use_cache=False)
    states = torch.stack([output.hidden_states[layer] for layer in LAYER_INDICES], dim=-2)
    shift, added = torch.zeros(()), torch.zeros(())
    for number, head in enumerate(mav.heads.values()):
        alpha = torch.tensor([row[number] for row in alphas]).reshape(-1, 1, 1)
        if head.config.acts_on_state:
            shift = shift + alpha * head(states)
        else:
            added = added + alpha * head(states)
    logits: Tensor = untouched.unembedding()(output.hidden_states[-1] + shift) + added
    return logits
