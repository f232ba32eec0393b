"""What heads read of a pass: the states of their layers, where they are wanted."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mav.cache_schema.errors import UsageError


def states_of_pass(
    states: Mapping[int, Tensor],
    layers: Sequence[int],
    kept: int | Tensor,
    positions: int,
    where: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Return the states of layers at the positions that have logits, or at some of them.

    Args:
        states: Each layer's of a pass of S positions, [B, S, hidden].
        layers: The K layers.
        kept: `logits_to_keep` of the pass.
        positions: How many positions have logits, T: not every model keeps as few as it is asked.
        where: Those that are wanted, bool [B, T], or None for all.
        device: Where they are wanted.

    Returns:
        [B, T, K, hidden]; of the N wanted positions alone [N, K, hidden].

    Raises:
        UsageError: A layer was not run.
    """
    for layer in layers:
        if layer not in states:
            raise UsageError(
                f"a pass of the base ran without its layer {layer}, whose state the head reads; "
                f"run all layers, or steer with alpha 0"
            )
    places = slice(-positions, None) if isinstance(kept, int) else kept
    found = [states[layer][:, places] for layer in layers]
    if where is not None:
        found = [state[where.to(state.device)] for state in found]
    return torch.stack([state.to(device) for state in found], dim=-2)
