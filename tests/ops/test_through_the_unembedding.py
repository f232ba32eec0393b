"""Log-probabilities of shifted states through a base's unembedding, against plain autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mav.pipeline.head.addition import addition
from mav.pipeline.head.config import HeadConfig
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
from mav.pipeline.ops.base_logits import FactoredLogits, Unembedding
from mav.pipeline.ops.projection import Projection
from mav.pipeline.ops.tiling import Tiling

TOKENS, HIDDEN, VOCAB, POOLED = 11, 6, 17, 5
TILINGS = (
    None,
    *(
        Tiling(tokens=tokens, columns=columns, kept_elements=kept)
        for tokens in (4, 100)
        for columns in (6, 100)
        for kept in (0, 50, 1000)
    ),
)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.5},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


def base_of(form: str, dtype: torch.dtype = torch.float64) -> FactoredLogits:
    torch.manual_seed(2)
    given = dict(FORMS[form])
    bias = torch.randn(VOCAB, dtype=dtype) if given.pop("bias", False) else None
    weight = torch.randn(VOCAB, HIDDEN, dtype=dtype)
    return FactoredLogits(
        final_state=torch.randn(TOKENS, HIDDEN, dtype=dtype),
        unembedding=Unembedding(weight=weight, bias=bias, **given),
    )


def head_of(dtype: torch.dtype = torch.float64, rank: int | None = None) -> AlignmentHead:
    torch.manual_seed(1)
    config = HeadConfig(
        kind="unembedding",
        num_layers=2,
        pooled_size=POOLED,
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        rank=rank,
        dropout=0.0,
    )
    head = AlignmentHead(config).to(dtype)
    for parameter in head.project.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def states() -> Tensor:
    return torch.randn(TOKENS, 2, POOLED, generator=torch.Generator().manual_seed(3)).double()


LABELS = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(4))
UNUSED = Projection(torch.empty(0, 0), None)


def whole(head: AlignmentHead, base: FactoredLogits) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, all tokens times the vocabulary at once: cap(scale * (W (h + f) + b))."""
    out = base.unembedding
    shift = head(states().to(head.dtype))

    def logp(state: Tensor) -> Tensor:
        logits = state @ out.weight.t()
        if out.bias is not None:
            logits = logits + out.bias
        logits = logits * out.scale
        if out.softcap is not None:
            logits = out.softcap * torch.tanh(logits / out.softcap)
        return logits.log_softmax(-1)[torch.arange(TOKENS), LABELS]

    vector = out.scale * shift @ out.weight.t()
    return logp(base.final_state + shift), (vector**2).sum(-1), logp(base.final_state)


def tiled(
    head: AlignmentHead, base: FactoredLogits, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    added = addition(head, states().to(head.dtype), base, UNUSED)
    logp, norm, base_logp, _ = aligned_logprobs(
        added.features, added.projection, added.base, LABELS, softcap=added.softcap, tiling=tiling
    )
    return logp, norm, base_logp


def loss_of(logp: Tensor, squared_norm: Tensor) -> Tensor:
    weights = torch.linspace(-1.5, 2, TOKENS, dtype=logp.dtype)
    return (weights * logp).sum() + 0.1 * (weights.flip(0) * squared_norm).sum()


def assert_near(found: Tensor, expected: Tensor, relative: float) -> None:
    scale = float(expected.detach().abs().max())
    assert scale > 1e-4
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=relative * scale)


# The base's logits of a tile are float32 whatever they are computed in.
NEAR = 1e-6


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_formula(form: str, tiling: Tiling | None) -> None:
    head, base = head_of(), base_of(form)
    found, expected = tiled(head, base, tiling), whole(head, base)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == torch.float64
        assert_near(got, wanted, NEAR)
    parameters = list(head.parameters())
    for got, wanted in zip(
        torch.autograd.grad(loss_of(*found[:2]), parameters),
        torch.autograd.grad(loss_of(*expected[:2]), parameters),
        strict=True,
    ):
        assert_near(got, wanted, NEAR)
    assert not found[2].requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_a_narrow_layer_in_between(form: str) -> None:
    head, base = head_of(rank=3), base_of(form)
    parameters = list(head.parameters())
    assert len(parameters) == 6
    got = torch.autograd.grad(loss_of(*tiled(head, base)[:2]), parameters)
    wanted = torch.autograd.grad(loss_of(*whole(head, base)[:2]), parameters)
    for mine, theirs in zip(got, wanted, strict=True):
        assert_near(mine, theirs, NEAR)


def test_a_new_head_leaves_the_base_exactly_as_it_is() -> None:
    head, base = head_of(torch.float32), base_of("all", torch.float32)
    for parameter in head.project.parameters():
        torch.nn.init.zeros_(parameter)
    logp, squared_norm, base_logp = tiled(head, base)
    assert torch.equal(logp, base_logp)
    assert not squared_norm.any()


def test_nothing_of_the_unembedding_is_trained_or_changed() -> None:
    head, base = head_of(torch.float32), base_of("all", torch.float32)
    out = base.unembedding
    assert out.bias is not None
    before = [tensor.clone() for tensor in (out.weight, out.bias, base.final_state)]
    loss_of(*tiled(head, base)[:2]).backward()  # type: ignore[no-untyped-call]
    for tensor, value in zip((out.weight, out.bias, base.final_state), before, strict=True):
        assert torch.equal(tensor, value)
        assert tensor.grad is None
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1])
def test_a_small_shift_keeps_its_digits_in_bfloat16(size: float) -> None:
    """Added to the state in bfloat16 it would lose most of them, and at 0.001 all but a few."""
    torch.manual_seed(5)
    hidden, vocab = 64, 200
    weight = torch.randn(vocab, hidden).bfloat16() / 8
    state = torch.randn(TOKENS, hidden).bfloat16()
    shift = (size * torch.randn(TOKENS, hidden)).bfloat16()
    base = FactoredLogits(final_state=state, unembedding=Unembedding(weight=weight))
    projection = Projection(weight, None, trained=False)
    labels = torch.randint(vocab, (TOKENS,))
    logp, _, base_logp, _ = aligned_logprobs(shift, projection, base, labels)

    def gains(shifted: Tensor) -> Tensor:
        before, after = (
            (one.double() @ weight.double().t()).log_softmax(-1)[torch.arange(TOKENS), labels]
            for one in (state, shifted)
        )
        return after - before

    exact = gains(state.double() + shift.double())
    apart = float((logp.double() - base_logp.double() - exact).norm() / exact.norm())
    together = float((gains(state + shift) - exact).norm() / exact.norm())
    assert apart < 0.01
    assert together > 3 * apart
