"""Texts packed into one sequence, and attention over them."""

from typing import Any

import torch
from torch import Tensor

from mav.pipeline.base.packed_attention import (
    PackedSegments,
    Segment,
    _attend,
    packed_attention,
)
from tests.support.models.tiny import tiny_base

LAYOUT = PackedSegments(
    segments=(
        Segment(start=0, length=9),
        Segment(start=9, length=4, prefix_start=0, prefix_length=5),
        Segment(start=13, length=1),
        Segment(start=14, length=7),
        Segment(start=21, length=3, prefix_start=14, prefix_length=6),
    )
)

TOKENS = 24


def states(heads: int, groups: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(1, count, TOKENS, 16, dtype=dtype) for count in (heads, groups, groups)]


def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    with packed_attention(tiny_base().decoder, LAYOUT):
        found, _ = _attend(None, query, key, value, None, **settings)
    return found
