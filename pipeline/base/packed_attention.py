"""Attention over several texts packed into one sequence, no token of which is padding.

Every layer of a model gets the whole packed sequence, so its products are as large as possible;
only attention knows where one text ends and the next begins, and that a rejected response
continues its prompt and not the chosen response before it. It stands in for the model's own
attention through transformers' `AttentionInterface`, takes what models pass to that (scaling,
sliding windows, soft-caps, sinks), and is compared with the model's own before it is trusted.

Shape legend: T tokens of the sequence, H heads, G key-value heads, D width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from mav.pipeline.base.varlen_kernel import has_varlen, varlen_attention
from mav.pipeline.runtime.library_logging import QuietLibraries

NAME: Final = "mav_packed"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens that follow each other and see each other causally.

    Attributes:
        start: First of them.
        length: Number of tokens.
        prefix_start: First of the tokens before it that they see too.
        prefix_length: Number of these.
    """

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def keys(self) -> int:
        """Number of tokens that its last token attends to."""
        return self.prefix_length + self.length


@dataclass(frozen=True, kw_only=True)
class PackedSegments:
    """The segments of a packed sequence, which cover it in order, without gaps."""

    segments: Sequence[Segment]
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _placed: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def key_places(self) -> Tensor:
        """int64, the places of all tokens that each segment sees, concatenated."""
        parts = []
        for segment in self.segments:
            parts.append(
                torch.arange(segment.prefix_start, segment.prefix_start + segment.prefix_length)
            )
            parts.append(torch.arange(segment.start, segment.start + segment.length))
        return torch.cat(parts)

    @cached_property
    def query_edges(self) -> Tensor:
        """int32 [segments + 1], where each segment begins, then T."""
        return _edges([segment.length for segment in self.segments])

    @cached_property
    def key_edges(self) -> Tensor:
        """int32 [segments + 1], the same for `key_places`."""
        return _edges([segment.keys for segment in self.segments])

    def placed(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return `key_places`, `query_edges` and `key_edges` on a device; each is copied once."""
        if device not in self._placed:
            edges = (self.query_edges.to(device), self.key_edges.to(device))
            self._placed[device] = (self.key_places.to(device), *edges)
        return self._placed[device]

    def mask(self, segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """Return which keys [length, keys] a segment's tokens see; None if plain causality says it.

        Args:
            segment: The segment.
            window: Most tokens a token sees, itself included; None for all.
            device: Where the mask goes.
        """
        windowed = window is not None and window < segment.keys
        if not segment.prefix_length and not windowed:
            return None
        shape = (segment.length, segment.keys)
        key = (*shape, window if windowed else None, device)
        if key not in self._masks:
            seen = torch.ones(shape, dtype=torch.bool, device=device).tril_(segment.prefix_length)
            if windowed:
                assert window is not None
                seen.triu_(segment.prefix_length - window + 1)
            self._masks[key] = seen
        return self._masks[key]


@contextmanager
def packed_attention(decoder: Any, layout: PackedSegments) -> Iterator[None]:
    """Make a model attend within segments while the context is open.

    Args:
        decoder: The model; afterwards it attends as before.
        layout: The segments of its input sequence.

    Raises:
        NotImplementedError: Its attention cannot be replaced.
    """
    before = decoder.config._attn_implementation
    with QuietLibraries():
        decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        raise NotImplementedError(f"{decoder.config.model_type}: its attention is its own")
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)
        decoder.set_attn_implementation(before)


_LAYOUT: ContextVar[PackedSegments] = ContextVar("layout of the packed sequence")


def _attend(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_more: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [1, T, H, D] for queries [1, H, T, D] and keys [1, G, T, D].

    The signature is that of transformers' `AttentionInterface`.
    """
    if attention_mask is not None or position_bias is not None or query.shape[0] != 1:
        raise NotImplementedError("a mask or a bias of the model's own")
    layout = _LAYOUT.get()
    if softcap is None and s_aux is None:
        if has_varlen(query, value):
            return _varlen(query, key, value, layout, scaling, sliding_window), None
    elif key.shape[1] < query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for segment in layout.segments:
        own = slice(segment.start, segment.start + segment.length)
        queries, keys, values = query[:, :, own], key[:, :, own], value[:, :, own]
        if segment.prefix_length:
            before = slice(segment.prefix_start, segment.prefix_start + segment.prefix_length)
            keys = torch.cat([key[:, :, before], keys], dim=2)
            values = torch.cat([value[:, :, before], values], dim=2)
        mask = layout.mask(segment, sliding_window, query.device)
        if softcap is None and s_aux is None:
            attended = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] < query.shape[1],
            )
        else:
            attended = _capped(queries, keys, values, mask, scaling, softcap, s_aux)
        out[:, own] = attended.transpose(1, 2)
    return out, None


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedSegments,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attend in one call of a kernel for texts of many lengths."""
    places, query_edges, key_edges = layout.placed(query.device)
    attended = varlen_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[places],
        value[0].transpose(0, 1)[places],
        (query_edges, key_edges),
        (
            max(segment.length for segment in layout.segments),
            max(segment.keys for segment in layout.segments),
        ),
        scale=scaling,
        window=window,
    )
    return attended[None]


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with soft-capped scores, or with an attention sink per head.

    Sources: Gemma 2 (https://arxiv.org/abs/2408.00118), section 2; gpt-oss' model card.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril_()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = scores.float().softmax(-1).to(query.dtype)
    return torch.matmul(weights[..., : key.shape[2]], value)


def _edges(lengths: Sequence[int]) -> Tensor:
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


AttentionInterface.register(NAME, _attend)
