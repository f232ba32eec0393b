"""The divergence from the base, tile by tile, against the plain formula by autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mav.pipeline.ops.aligned_logprobs import AlignedLogprobs, aligned_logprobs
from mav.pipeline.ops.base_logits import (
    BaseLogits,
    DenseLogits,
    FactoredLogits,
    TopKLogits,
    Unembedding,
    encode_topk,
)
from mav.pipeline.ops.projection import Projection
from mav.pipeline.ops.tiling import Tiling

N, E, V, H = 11, 5, 17, 4
TILINGS = (
    None,
    *(
        Tiling(tokens=tokens, columns=columns, kept_elements=kept)
        for tokens in (1, 4, 100)
        for columns in (1, 6, 100)
        for kept in (0, 50, 1000)
    ),
)
SOFTCAPS = (None, 2.5)
WEIGHTS = torch.linspace(-1.5, 2, N, dtype=torch.float64)


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LABELS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(9))


def dense() -> BaseLogits:
    return DenseLogits(logits=3 * drawn(N, V, seed=4).float())


def factored() -> BaseLogits:
    return FactoredLogits(
        final_state=drawn(N, H, seed=5).float(),
        unembedding=Unembedding(weight=drawn(V, H, seed=6).float(), scale=1.3),
    )


def topk() -> BaseLogits:
    top = encode_topk(3 * drawn(N, V, seed=4).float(), 6)
    return TopKLogits(
        logits=top["topk_logits"],
        ids=top["topk_ids"].long(),
        rest=top["rest_logsumexp"],
        vocab_size=V,
        labels=LABELS,
        label_logprobs=torch.full((N,), -2.0),
    )


ENCODINGS = (dense, factored, topk)


def leaves(dtype: torch.dtype = torch.float64, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    made = (drawn(N, E, seed=1), size * drawn(V, E, seed=2), size * drawn(V, seed=3))
    x, w, b = (value.to(dtype).requires_grad_() for value in made)
    return x, w, b


def tiled(
    given: tuple[Tensor, Tensor, Tensor],
    base: BaseLogits,
    softcap: float | None = None,
    tiling: Tiling | None = None,
    products: torch.dtype | None = None,
) -> AlignedLogprobs:
    x, w, b = given
    return aligned_logprobs(
        x,
        Projection(w, b, products),
        base,
        LABELS,
        softcap=softcap,
        tiling=tiling,
        wants_kl=True,
    )


def whole(
    given: tuple[Tensor, Tensor, Tensor], base: BaseLogits, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """logp, ||a||^2 and sum_v p_v (log p_v - log q_v), all tokens times the vocabulary at once."""
    x, w, b = given
    vector = x @ w.t() + b
    z = base.chunk(0, N).to(vector.dtype)

    def capped(logits: Tensor) -> Tensor:
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    p, q = capped(z + vector).log_softmax(-1), capped(z).log_softmax(-1)
    logp = p[torch.arange(N), LABELS]
    return logp, vector.square().sum(-1), (p.exp() * (p - q)).sum(-1)


def kl_of(found: AlignedLogprobs) -> Tensor:
    assert found.kl is not None
    return found.kl


def assert_near(found: Tensor, expected: Tensor, relative: float) -> None:
    scale = float(expected.detach().abs().max())
    assert scale > 1e-6
    torch.testing.assert_close(
        found.double(), expected.detach().double(), rtol=0, atol=relative * scale
    )


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("tiling", TILINGS)
def test_values_and_gradients_equal_the_formula(
    tiling: Tiling | None, softcap: float | None
) -> None:
    given, base = leaves(), dense()
    found, expected = tiled(given, base, softcap, tiling), whole(given, base, softcap)
    # The base's logits of a tile are float32, and so is its cap.
    near = 1e-10 if softcap is None else 2e-6
    for got, wanted in zip((found.logp, found.squared_norm, kl_of(found)), expected, strict=True):
        assert got.dtype == torch.float64
        assert_near(got.detach(), wanted, near)
    for mine, theirs in zip(
        torch.autograd.grad((WEIGHTS * kl_of(found)).sum(), given),
        torch.autograd.grad((WEIGHTS * expected[2]).sum(), given),
        strict=True,
    ):
        assert_near(mine, theirs, near)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding_serves_beside_the_other_terms(encoding: Callable[[], BaseLogits]) -> None:
    given, base = leaves(), encoding()
    found, expected = tiled(given, base, tiling=TILINGS[12]), whole(given, base)

    def loss(logp: Tensor, squared_norm: Tensor, kl: Tensor) -> Tensor:
        flipped = WEIGHTS.flip(0)
        return (WEIGHTS * logp).sum() + 0.1 * (flipped * squared_norm).sum() + (kl * kl).sum()

    mine = loss(found.logp, found.squared_norm, kl_of(found))
    theirs = loss(*expected)
    # A product of a part of the vocabulary is rounded otherwise than one of all of it.
    near = 1e-6 if encoding is factored else 1e-9
    assert_near(mine.detach(), theirs, near)
    for got, wanted in zip(
        torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True
    ):
        assert_near(got, wanted, near)


@pytest.mark.parametrize("softcap", SOFTCAPS)
@pytest.mark.parametrize("base_logprobs", [None, torch.zeros(N)])
def test_a_head_that_adds_nothing_has_none_exactly(
    softcap: float | None, base_logprobs: Tensor | None
) -> None:
    x, w, b = leaves(torch.float32, size=0.0)
    found = aligned_logprobs(
        x,
        Projection(w, b),
        factored(),
        LABELS,
        base_logprobs=base_logprobs,
        softcap=softcap,
        wants_kl=True,
    )
    assert not kl_of(found).any()


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_float32_keeps_small_ones(size: float) -> None:
    """Of vectors of a hundredth it is about 1e-4 nats, and logits about 10."""
    exact = whole(leaves(size=size), dense())[2]
    assert size == 1.0 or float(exact.detach().mean()) < 0.01
    assert_near(kl_of(tiled(leaves(torch.float32, size), dense())).detach(), exact, 5e-3)


def test_bfloat16_products_stay_close() -> None:
    given, base = leaves(torch.float32), dense()
    narrow, wide = (tiled(given, base, products=kind) for kind in (torch.bfloat16, None))
    assert_near(kl_of(narrow).detach(), kl_of(wide), 0.03)
    assert not torch.equal(kl_of(narrow), kl_of(wide))


def test_tokens_that_the_base_rules_out_count_for_nothing() -> None:
    """Among them whole tiles, the first too."""
    ruled_out, given = torch.arange(V) < 12, leaves()
    logits = 3 * drawn(N, V, seed=4).float()
    labels = torch.full((N,), 14)
    x, w, b = given
    found = aligned_logprobs(
        x,
        Projection(w, b),
        DenseLogits(logits=logits.masked_fill(ruled_out, -torch.inf)),
        labels,
        tiling=Tiling(tokens=4, columns=6),
        wants_kl=True,
    )
    left = (x, w[12:], b[12:])
    vector = left[0] @ left[1].t() + left[2]
    p = (logits[:, 12:].double() + vector).log_softmax(-1)
    q = logits[:, 12:].double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    assert_near(kl_of(found).detach(), expected, 1e-10)
    for mine, theirs in zip(
        torch.autograd.grad(kl_of(found).sum(), given),
        torch.autograd.grad(expected.sum(), given),
        strict=True,
    ):
        assert_near(mine, theirs, 1e-10)


def test_it_is_left_out_where_it_is_not_asked_for() -> None:
    x, w, b = leaves()
    found = aligned_logprobs(x, Projection(w, b), dense(), LABELS)
    assert found.kl is None
    with_it = tiled((x, w, b), dense())
    assert torch.equal(found.logp, with_it.logp)
    assert torch.equal(found.base_logp, with_it.base_logp)
