"""The kernel for texts of many lengths: which tensors go to it, and its call in each release."""

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention
import torch.nn.functional as F
from torch import Tensor

from mav.pipeline.base.packed_attention import PackedSegments, Segment, _varlen
from mav.pipeline.base.varlen_kernel import has_varlen
from tests.support.models.segments import LAYOUT, attend, states

Kernel = Callable[..., Tensor]


def formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edges_q: Tensor,
    edges_k: Tensor,
    scale: float | None,
    window: tuple[int, int],
) -> Tensor:
    """What the kernel computes, text by text; the last query sees the last key."""
    out = []
    for text in range(len(edges_q) - 1):
        q, k, v = (
            x[edges[text] : edges[text + 1]].transpose(0, 1)[None]
            for x, edges in ((query, edges_q), (key, edges_k), (value, edges_k))
        )
        behind = k.shape[2] - q.shape[2]
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(behind)
        if window[0] >= 0:
            seen = seen.triu(behind - window[0])
        found = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
        out.append(found[0].transpose(0, 1))
    return torch.cat(out)


def of_2_11(groups: list[int]) -> Kernel:
    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
        groups.append(query.shape[1] // key.shape[1])
        return formula(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)

    return varlen_attn


def of_2_13(groups: list[int]) -> Kernel:
    older = of_2_11(groups)

    def varlen_attn(
        *given: Any,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        query, key, *_ = given
        assert enable_gqa or query.shape[1] == key.shape[1]
        return older(*given, scale=scale, window_size=window_size)

    return varlen_attn


def install(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    made: Any = types.ModuleType("torch.nn.attention.varlen")
    made.varlen_attn = kernel
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", made)


@pytest.mark.parametrize("release", [of_2_11, of_2_13])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 3, 1000])
def test_every_release_gives_what_attention_text_by_text_gives(
    monkeypatch: pytest.MonkeyPatch,
    release: Callable[[list[int]], Kernel],
    groups: int,
    window: int | None,
) -> None:
    qkv = states(4, groups)
    want = attend(*qkv, scaling=0.25, sliding_window=window)
    given: list[int] = []
    install(monkeypatch, release(given))
    got = _varlen(qkv[0], qkv[1], qkv[2], LAYOUT, 0.25, window)
    assert torch.allclose(got, want, atol=1e-6)
    # Heads are repeated only where the kernel does not share keys between them.
    assert given == [1 if release is of_2_11 else 4 // groups]


def test_places_are_copied_once_for_all_layers() -> None:
    layout = PackedSegments(segments=(Segment(start=0, length=3),))
    cpu = torch.device("cpu")
    assert layout.placed(cpu) is layout.placed(cpu)


class OnCuda:
    """A tensor as far as it is looked at before the kernel is called."""

    is_cuda = True
    device = torch.device("cuda:0")

    def __init__(self, width: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.shape = (1, 4, 24, width)
        self.dtype = dtype


def takes(width: int, dtype: torch.dtype = torch.bfloat16) -> bool:
    tensor: Any = OnCuda(width, dtype)
    return has_varlen(tensor, tensor)


def on_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)


def test_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, (9, 0))
    assert takes(64) and takes(256) and takes(64, torch.float16)
    # Heads of 100 are OpenLLaMA's; the kernel wants multiples of 8.
    assert not takes(100) and not takes(264) and not takes(64, torch.float32)
    other: Any = OnCuda(128)
    mine: Any = OnCuda(64)
    assert not has_varlen(mine, other)
    on_card(monkeypatch, (7, 5))
    assert not takes(64, torch.float16)


def test_releases_without_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, (9, 0))

    def of_2_10(*given: Any, is_causal: bool = False) -> Tensor:
        raise AssertionError

    install(monkeypatch, of_2_10)
    assert not takes(64)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert not takes(64)


def test_the_release_in_use_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    on_card(monkeypatch, (8, 0))
    assert takes(128)
