"""Chunked log-probabilities against the whole computation by plain autograd."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mav.pipeline.ops.aligned_logprobs import aligned_logprobs
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

TOKENS, FEATURES, VOCAB = 11, 5, 17
LOSSES = ("logp", "squared_norm", "both")
TILINGS = (
    None,
    *(
        Tiling(tokens=tokens, columns=columns, kept_elements=kept)
        for tokens in (1, 4, TOKENS, 100)
        for columns in (1, 6, VOCAB, 100)
        for kept in (0, 50, 1000)
    ),
)
CUT = Tiling(tokens=4, columns=6, kept_elements=50)


@dataclass
class Problem:
    features: Tensor
    weight: Tensor
    bias: Tensor
    logits: Tensor
    labels: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.weight, self.bias


def problem(tokens: int = TOKENS, dtype: torch.dtype = torch.float64) -> Problem:
    torch.manual_seed(tokens)
    return Problem(
        features=torch.randn(tokens, FEATURES, dtype=dtype, requires_grad=True),
        weight=torch.randn(VOCAB, FEATURES, dtype=dtype, requires_grad=True),
        bias=torch.randn(VOCAB, dtype=dtype, requires_grad=True),
        logits=3 * torch.randn(tokens, VOCAB),
        labels=torch.randint(VOCAB, (tokens,), dtype=torch.int32),
    )


def score(
    given: Problem,
    base: BaseLogits,
    *,
    tiling: Tiling | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    projection = Projection(given.weight, given.bias, dtype)
    logp, norm, *_ = aligned_logprobs(given.features, projection, base, given.labels, tiling=tiling)
    return logp, norm


def whole(given: Problem) -> tuple[Tensor, Tensor]:
    """The formula, all tokens times the vocabulary at once."""
    vector = given.features @ given.weight.t() + given.bias
    logp = torch.log_softmax(given.logits.to(vector.dtype) + vector, -1)
    return logp.gather(-1, given.labels.long()[:, None])[:, 0], (vector**2).sum(-1)


def loss_of(name: str, logp: Tensor, squared_norm: Tensor) -> Tensor:
    """A loss in which every token has a weight of its own, of either sign."""
    weights = torch.linspace(-1.5, 2, len(logp), dtype=logp.dtype)
    first = (weights * logp).sum() if name != "squared_norm" else logp.new_zeros(())
    second = (weights.flip(0) * squared_norm).sum() if name != "logp" else logp.new_zeros(())
    return 0.1 * first + 0.01 * first**2 + 0.01 * second


def assert_near(found: Tensor, expected: Tensor, relative: float) -> None:
    """Compare against the size of the largest entry: a sum's terms may cancel in one entry."""
    assert found.shape == expected.shape
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("tiling", TILINGS)
def test_values_equal_the_whole_computation(tiling: Tiling | None) -> None:
    given = problem()
    found = score(given, DenseLogits(logits=given.logits), tiling=tiling)
    for value, expected in zip(found, whole(given), strict=True):
        assert value.dtype == torch.float64
        assert_near(value, expected, 1e-10)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_equal_those_of_the_whole_computation(tiling: Tiling | None, loss: str) -> None:
    given = problem()
    expected = torch.autograd.grad(loss_of(loss, *whole(given)), given.leaves())
    base = DenseLogits(logits=given.logits)
    found = score(given, base, tiling=tiling)
    for got, wanted in zip(
        torch.autograd.grad(loss_of(loss, *found), given.leaves()), expected, strict=True
    ):
        assert wanted.abs().max() > 1e-4
        assert_near(got, wanted, 1e-10)


def test_one_token_alone() -> None:
    given = problem(1)
    found = score(given, DenseLogits(logits=given.logits))
    for value, expected in zip(found, whole(given), strict=True):
        assert_near(value, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tokens_give_no_values_and_zero_gradients(dtype: torch.dtype) -> None:
    given = problem(0, dtype)
    logp, norm = score(given, DenseLogits(logits=given.logits))
    assert logp.shape == norm.shape == (0,)
    gradients = torch.autograd.grad(logp.sum() + norm.sum(), given.leaves())
    for gradient, leaf in zip(gradients, given.leaves(), strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.dtype == leaf.dtype
        assert not gradient.any()


def test_gradients_pass_through_to_what_made_the_features() -> None:
    given = problem()
    doubled = torch.ones(FEATURES, dtype=torch.float64, requires_grad=True)

    def gradient(tiling: Tiling | None) -> Tensor:
        scaled = Problem(
            given.features.detach() * doubled,
            given.weight,
            given.bias,
            given.logits,
            given.labels,
        )
        base = DenseLogits(logits=given.logits)
        found = whole(scaled) if tiling is None else score(scaled, base, tiling=tiling)
        return torch.autograd.grad(loss_of("both", *found), doubled)[0]

    assert_near(gradient(CUT), gradient(None), 1e-10)


def test_float32_gives_float32_close_to_float64() -> None:
    wide, narrow = problem(), problem()
    narrow.features, narrow.weight, narrow.bias = (
        leaf.detach().float().requires_grad_() for leaf in wide.leaves()
    )
    base = DenseLogits(logits=wide.logits)
    found = score(narrow, base, tiling=CUT)
    gradients = torch.autograd.grad(loss_of("both", *found), narrow.leaves())
    expected = torch.autograd.grad(loss_of("both", *whole(wide)), wide.leaves())
    for got, wanted in zip(
        (*found, *gradients), (*map(Tensor.detach, whole(wide)), *expected), strict=True
    ):
        assert got.dtype == torch.float32
        assert_near(got.double(), wanted, 1e-5)


def test_bfloat16_products_stay_close_to_float32() -> None:
    given = problem(dtype=torch.float32)
    base = DenseLogits(logits=given.logits)

    def results(dtype: torch.dtype | None) -> list[Tensor]:
        found = score(given, base, tiling=CUT, dtype=dtype)
        return [*found, *torch.autograd.grad(loss_of("both", *found), given.leaves())]

    for got, wanted in zip(results(torch.bfloat16), results(None), strict=True):
        assert got.dtype == torch.float32
        assert_near(got, wanted, 0.03)
        assert not torch.equal(got, wanted)


def test_bfloat16_products_are_all_that_is_narrow() -> None:
    """With inputs that bfloat16 holds exactly, only the last rounding of a product is left."""
    given = problem(dtype=torch.float32)
    given.features, given.weight = (
        leaf.detach().sign().requires_grad_() for leaf in (given.features, given.weight)
    )
    base = DenseLogits(logits=given.logits)
    found = score(given, base, tiling=CUT, dtype=torch.bfloat16)
    for got, wanted in zip(found, whole(given), strict=True):
        assert_near(got, wanted, 1e-6)


def test_autocast_changes_nothing() -> None:
    given = problem(dtype=torch.float32)

    def results(autocast: bool) -> list[Tensor]:
        base = DenseLogits(logits=given.logits)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = score(given, base, tiling=CUT)
            loss = loss_of("both", *found)
            return [*found, *torch.autograd.grad(loss, given.leaves())]

    for got, wanted in zip(results(True), results(False), strict=True):
        assert torch.equal(got, wanted)


def encodings(given: Problem) -> dict[str, tuple[BaseLogits, tuple[Tensor, ...]]]:
    """The base in each encoding, with the tensors it is made of."""
    state, weight = torch.randn(TOKENS, 4), torch.randn(VOCAB, 4)
    top = encode_topk(given.logits, 6)
    logits, ids, rest = top["topk_logits"], top["topk_ids"].long(), top["rest_logsumexp"]
    return {
        "dense": (DenseLogits(logits=given.logits), (given.logits,)),
        "factored": (
            FactoredLogits(final_state=state, unembedding=Unembedding(weight=weight)),
            (state, weight),
        ),
        "topk": (
            TopKLogits(logits=logits, ids=ids, rest=rest, vocab_size=VOCAB),
            (logits, ids, rest),
        ),
    }


@pytest.mark.parametrize("encoding", ["dense", "factored", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_encoding_serves_and_is_left_unchanged(encoding: str, dtype: torch.dtype) -> None:
    given = problem(dtype=dtype)
    base, stored = encodings(given)[encoding]
    before = [tensor.clone() for tensor in stored]
    given.logits = base.chunk(0, TOKENS)
    expected = torch.autograd.grad(loss_of("both", *whole(given)), given.leaves())
    found = score(given, base, tiling=CUT)
    gradients = torch.autograd.grad(loss_of("both", *found), given.leaves())
    for got, wanted in zip(gradients, expected, strict=True):
        assert_near(got, wanted, 1e-5)
    for tensor, value in zip(stored, before, strict=True):
        assert torch.equal(tensor, value)


def test_inputs_are_left_unchanged() -> None:
    given = problem()
    before = [leaf.detach().clone() for leaf in (*given.leaves(), given.labels)]
    found = score(given, DenseLogits(logits=given.logits), tiling=CUT)
    loss_of("both", *found).backward()  # type: ignore[no-untyped-call]
    for leaf, value in zip((*given.leaves(), given.labels), before, strict=True):
        assert torch.equal(leaf, value)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_kept_tiles_are_what_is_computed_again(dtype: torch.dtype | None) -> None:
    given = problem(dtype=torch.float32)

    def gradients(kept: int) -> list[Tensor]:
        tiling = Tiling(tokens=4, columns=6, kept_elements=kept)
        found = score(given, DenseLogits(logits=given.logits), tiling=tiling, dtype=dtype)
        loss = loss_of("both", *found)
        once = torch.autograd.grad(loss, given.leaves(), retain_graph=True)
        return [*once, *torch.autograd.grad(loss, given.leaves())]

    for kept in (30, 10_000):
        for got, wanted in zip(gradients(kept), gradients(0), strict=True):
            assert torch.equal(got, wanted)


def test_memory_does_not_grow_with_tokens_times_vocabulary() -> None:
    tiling = Tiling.fitting(torch.empty(100_000, 16, device="meta"))
    assert tiling.tokens * tiling.columns <= 1 << 26
    assert tiling.kept_elements <= 1 << 27


def test_gradients_can_be_added_where_they_are_kept() -> None:
    given = problem()
    base = DenseLogits(logits=given.logits)
    expected = torch.autograd.grad(loss_of("both", *whole(given)), given.leaves())
    for leaf in given.leaves():
        leaf.grad = torch.ones_like(leaf)
    buffers = [leaf.grad for leaf in given.leaves()]
    projection = Projection(given.weight, given.bias, accumulates_grad=True)
    for _ in range(2):
        logp, norm, *_ = aligned_logprobs(
            given.features, projection, base, given.labels, tiling=CUT
        )
        loss_of("both", logp, norm).backward()  # type: ignore[no-untyped-call]
    for leaf, buffer, gradient in zip(given.leaves(), buffers, expected, strict=True):
        assert leaf.grad is buffer
        assert buffer is not None
        assert_near(buffer, 1 + 2 * gradient, 1e-10)


def test_the_narrow_copy_follows_the_weight_when_told() -> None:
    given = problem(dtype=torch.float32)
    projection = Projection(given.weight, given.bias, torch.bfloat16)
    before = projection.compute_weight().clone()
    with torch.no_grad():
        given.weight.mul_(2)
    assert torch.equal(projection.compute_weight(), before)
    projection.weight_changed()
    assert torch.equal(projection.compute_weight(), 2 * before)
