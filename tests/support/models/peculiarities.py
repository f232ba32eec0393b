"""What architectures do that others do not, and how a tiny model shows that it does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mav.pipeline.base.model import BaseModel
from mav.pipeline.base.packed_attention import PackedSegments, packed_attention
from mav.pipeline.extraction.packing import Packing

WINDOW: Final = 8
"""Shorter than every text: even the states of layer L do not see the first tokens of most."""
NO_LIMIT: Final = 200
"""Longer than every text."""

Build = Callable[..., BaseModel]
"""Makes a variant's model, with settings changed as named."""


@dataclass(frozen=True, kw_only=True)
class Peculiarity:
    """What an architecture does that another does not.

    Attributes:
        words: For the table.
        shown: Tells whether a model has it.
        packing: The quickest way it lets pairs be run in.
    """

    words: str
    shown: Callable[[Build], bool]
    packing: Packing = "packed"


@torch.no_grad()
def _logits(model: Any, **inputs: Tensor) -> Tensor:
    ids = torch.arange(2, 2 + 5 * WINDOW)[None]
    logits: Tensor = model(input_ids=ids, **inputs).logits
    return logits


def _differ(got: Tensor, other: Tensor) -> bool:
    # Far above rounding, which is 1e-6 at most in float32.
    return float((got - other).norm() / other.norm()) > 1e-3


def matters(**without: Any) -> Callable[[Build], bool]:
    """The same weights under these settings give other logits."""

    def shown(build: Build) -> bool:
        model, changed = build().model, build(**without).model
        changed.load_state_dict(model.state_dict())
        return _differ(_logits(model), _logits(changed))

    return shown


def _roomy(build: Build) -> bool:
    """The window is at work, and no narrower than the text."""
    return matters(sliding_window=WINDOW)(build) and not matters(sliding_window=10_000)(build)


def weighs(part: str, value: float = 0.0) -> Callable[[Build], bool]:
    """There are parameters of this name, and logits change when all are set to a value."""

    def shown(build: Build) -> bool:
        model = build().model
        before = _logits(model)
        parameters = [it for name, it in model.named_parameters() if part in name]
        for parameter in parameters:
            parameter.fill_(value)
        return bool(parameters) and _differ(_logits(model), before)

    return shown


def _tied(build: Build) -> bool:
    model = build().model
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def _untied(build: Build) -> bool:
    model = build().model
    output, given = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return output.data_ptr() != given.data_ptr() and _differ(output, given)


def _embedded(build: Build) -> tuple[Tensor, Tensor]:
    """Return rows of the embedding and what the first layer is given, both [S, hidden]."""
    model = build().model
    ids = torch.tensor([[5, 5, 9]])
    given: Tensor = model(ids, output_hidden_states=True).hidden_states[0][0]
    return model.get_input_embeddings().weight[ids[0]], given


def _scaled_embeddings(build: Build) -> bool:
    rows, given = _embedded(build)
    factor = (given * rows).sum() / (rows * rows).sum()
    return bool(factor > 2) and not _differ(given, factor * rows)


def _learned_positions(build: Build) -> bool:
    _, given = _embedded(build)
    return _differ(given[0], given[1])


def _no_positions(build: Build) -> bool:
    """Positions that are given change nothing or are refused."""
    model = build().model
    count = 5 * WINDOW
    try:
        shuffled = _logits(model, position_ids=torch.arange(count).flip(0)[None])
    except TypeError:
        return True
    return not _differ(shuffled, _logits(model))


def layer_kinds(*kinds: str) -> Callable[[Build], bool]:
    """The layers are of these kinds, and of no other."""

    def shown(build: Build) -> bool:
        config = build().config
        # GPT-Neo has its own name for it.
        found = getattr(config, "layer_types", None) or config.attention_layers
        return set(found) == set(kinds)

    return shown


def norms_follow(build: Build) -> bool:
    names = {name.rsplit(".", 1)[-1] for name, _ in build().model.named_modules()}
    return "post_feedforward_layernorm" in names and "input_layernorm" not in names


def has_vision_tower(build: Build) -> bool:
    return any("vision_tower" in name for name, _ in build().model.named_modules())


def _own_attention(build: Build) -> bool:
    """Its attention cannot be replaced."""
    try:
        with packed_attention(build().decoder, PackedSegments(segments=())):
            return False
    except NotImplementedError:
        return True


def window(setting: str = "sliding_window", packing: Packing = "packed") -> Peculiarity:
    return Peculiarity(
        words="a short window", shown=matters(**{setting: NO_LIMIT}), packing=packing
    )


ROOMY: Final = Peculiarity(words="a roomy window", shown=_roomy)
TIED: Final = Peculiarity(words="tied unembedding", shown=_tied)
UNTIED: Final = Peculiarity(words="untied unembedding", shown=_untied)
BIASED: Final = Peculiarity(words="unembedding with a bias", shown=weighs("lm_head.bias"))
SOFTCAP: Final = Peculiarity(
    words="soft-capped logits", shown=matters(final_logit_softcapping=None)
)
SCALED_EMBEDDINGS: Final = Peculiarity(words="scaled embeddings", shown=_scaled_embeddings)
MIXED: Final = Peculiarity(
    words="local and global layers", shown=layer_kinds("sliding_attention", "full_attention")
)
EXPERTS: Final = Peculiarity(words="experts", shown=matters(num_experts_per_tok=1))
QUERY_NORMS: Final = Peculiarity(words="normed queries and keys", shown=weighs("q_norm"))
ALIBI: Final = Peculiarity(words="ALiBi", shown=_no_positions, packing="separate")
LINEAR_ATTENTION: Final = Peculiarity(
    words="linear attention",
    shown=layer_kinds("linear_attention", "full_attention"),
    packing="separate",
)
OWN_ATTENTION: Final = Peculiarity(
    words="attention of its own", shown=_own_attention, packing="shared_prompt"
)
LEARNED: Final = Peculiarity(words="learned positions", shown=_learned_positions)
