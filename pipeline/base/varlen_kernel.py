"""PyTorch's variable-length attention kernel: where it can be used, and its call.

Shape legend: T query tokens, S key tokens, H heads, G key-value heads, D width of a head.
"""

import inspect
from typing import Any, Final

import torch
from torch import Tensor

_TYPES: Final = (torch.bfloat16, torch.float16)
_MOST_WIDTH: Final = 256
_WIDTH_STEP: Final = 8
_CAPABILITY: Final = (8, 0)
"""FlashAttention-2 is built for these cards and newer ones."""
_NEEDED: Final = ("scale", "window_size")


def has_varlen(query: Tensor, value: Tensor) -> bool:
    """Return whether the installed PyTorch's kernel takes these tensors on their device.

    Args:
        query: [..., D].
        value: [..., D], of the same type and device.
    """
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _TYPES
        and width == value.shape[-1]
        and width <= _MOST_WIDTH
        and width % _WIDTH_STEP == 0
        and torch.cuda.get_device_capability(query.device) >= _CAPABILITY
        and all(name in _parameters() for name in _NEEDED)
    )


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edges: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Attend causally within each text, its queries aligned with the last of its keys.

    Args:
        query: [T, H, D].
        key: [S, G, D].
        value: [S, G, D].
        edges: Where the queries and the keys of each text begin and end, int32 [texts + 1] both.
        longest: Most queries and most keys of a text.
        scale: Factor on the scores; None for the usual one.
        window: Most tokens a token sees, itself included; None for all.

    Returns:
        [T, H, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        if "enable_gqa" in _parameters():
            more["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    attended = varlen_attn(
        query,
        key,
        value,
        *edges,
        *longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **more,
    )
    assert isinstance(attended, Tensor)
    return attended


def _parameters() -> frozenset[str]:
    """Return the kernel's parameter names; none where PyTorch has no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)
