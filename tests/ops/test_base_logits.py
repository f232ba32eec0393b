"""The base's logits, in each of the three encodings."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mav.pipeline.ops.base_logits import (
    BaseLogits,
    DenseLogits,
    FactoredLogits,
    TopKLogits,
    Unembedding,
    encode_topk,
)

TOKENS, HIDDEN, VOCAB = 7, 6, 11


def random_unembedding(scale: float = 1.0, softcap: float | None = None) -> Unembedding:
    torch.manual_seed(0)
    return Unembedding(
        weight=torch.randn(VOCAB, HIDDEN), bias=torch.randn(VOCAB), scale=scale, softcap=softcap
    )


def logits_by_formula(unembedding: Unembedding, state: Tensor) -> Tensor:
    logits = state.double() @ unembedding.weight.double().t()
    if unembedding.bias is not None:
        logits = logits + unembedding.bias.double()
    logits = unembedding.scale * logits
    cap = unembedding.softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_unembedding_follows_its_formula(
    scale: float, softcap: float | None, has_bias: bool
) -> None:
    unembedding = random_unembedding(scale, softcap)
    if not has_bias:
        unembedding = replace(unembedding, bias=None)
    state = torch.randn(2, TOKENS, HIDDEN)
    found = unembedding(state)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), logits_by_formula(unembedding, state), rtol=1e-5, atol=1e-5
    )


def test_unembedding_computes_in_the_type_of_its_weight() -> None:
    unembedding = random_unembedding(scale=0.3, softcap=5.0)
    assert unembedding.bias is not None
    narrow = replace(
        unembedding, weight=unembedding.weight.bfloat16(), bias=unembedding.bias.bfloat16()
    )
    state = torch.randn(TOKENS, HIDDEN).bfloat16()
    model_own = torch.nn.functional.linear(state, narrow.weight, narrow.bias) * 0.3
    model_own = torch.tanh(model_own / 5.0) * 5.0
    assert model_own.dtype == torch.bfloat16
    assert torch.equal(narrow(state.float()), model_own.float())


def test_unembedding_moves_whole() -> None:
    unembedding = random_unembedding(0.5, 3.0).to(torch.device("meta"))
    assert unembedding.bias is not None
    assert {unembedding.weight.device.type, unembedding.bias.device.type} == {"meta"}
    assert (unembedding.scale, unembedding.softcap) == (0.5, 3.0)


def encoded(encoding: str) -> tuple[BaseLogits, list[Tensor]]:
    """Return logits in an encoding, and the tensors they come from."""
    unembedding = random_unembedding()
    state = torch.randn(TOKENS, HIDDEN)
    if encoding == "factored":
        assert unembedding.bias is not None
        stored = [state, unembedding.weight, unembedding.bias]
        return FactoredLogits(final_state=state, unembedding=unembedding), stored
    logits = unembedding(state)
    if encoding == "dense":
        return DenseLogits(logits=logits), [logits]
    if encoding == "dense bfloat16":
        narrow = logits.bfloat16()
        return DenseLogits(logits=narrow), [narrow]
    arrays = encode_topk(logits, 4)
    top, ids, rest = arrays["topk_logits"], arrays["topk_ids"].long(), arrays["rest_logsumexp"]
    return TopKLogits(logits=top, ids=ids, rest=rest, vocab_size=VOCAB), [top, ids, rest]


ENCODINGS = ("factored", "dense", "dense bfloat16", "topk")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_chunks_are_rows_of_the_whole(encoding: str) -> None:
    base, _ = encoded(encoding)
    whole = base.chunk(0, TOKENS)
    assert (whole.shape, whole.dtype) == ((TOKENS, VOCAB), torch.float32)
    pieces = [base.chunk(start, min(start + 3, TOKENS)) for start in range(0, TOKENS, 3)]
    torch.testing.assert_close(torch.cat(pieces), whole)
    assert base.chunk(2, 2).shape == (0, VOCAB)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_chunk_is_the_callers_to_change(encoding: str) -> None:
    base, stored = encoded(encoding)
    before, values = base.chunk(0, TOKENS), [tensor.clone() for tensor in stored]
    base.chunk(0, TOKENS).fill_(float("nan"))
    base.chunk(1, 3).zero_()
    assert torch.equal(base.chunk(0, TOKENS), before)
    for tensor, value in zip(stored, values, strict=True):
        assert torch.equal(tensor, value)


def test_factored_and_dense_are_the_logits_themselves() -> None:
    unembedding = random_unembedding(0.5, 4.0)
    state = torch.randn(TOKENS, HIDDEN)
    logits = unembedding(state)
    factored = FactoredLogits(final_state=state, unembedding=unembedding)
    torch.testing.assert_close(factored.chunk(2, 5), logits[2:5])
    assert torch.equal(DenseLogits(logits=logits).chunk(2, 5), logits[2:5])
    narrow = logits.bfloat16()
    assert torch.equal(DenseLogits(logits=narrow).chunk(2, 5), narrow[2:5].float())


@pytest.mark.parametrize("k", [1, 4, VOCAB - 1])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_topk_keeps_log_sum_exp_and_kept_probabilities(k: int, spread: float) -> None:
    torch.manual_seed(k)
    logits = torch.randn(TOKENS, VOCAB) * spread
    arrays = encode_topk(logits, k)
    base = TopKLogits(
        logits=arrays["topk_logits"],
        ids=arrays["topk_ids"].long(),
        rest=arrays["rest_logsumexp"],
        vocab_size=VOCAB,
    )
    found = base.chunk(0, TOKENS)
    torch.testing.assert_close(found.logsumexp(-1), logits.logsumexp(-1))
    kept = arrays["topk_ids"].long()
    assert torch.equal(found.gather(-1, kept), logits.gather(-1, kept))
    torch.testing.assert_close(
        found.log_softmax(-1).gather(-1, kept), logits.log_softmax(-1).gather(-1, kept)
    )


def test_topk_shares_the_rest_evenly() -> None:
    logits = torch.randn(TOKENS, VOCAB)
    arrays = encode_topk(logits, 4)
    base = TopKLogits(
        logits=arrays["topk_logits"],
        ids=arrays["topk_ids"].long(),
        rest=arrays["rest_logsumexp"],
        vocab_size=VOCAB,
    )
    for probs, ids, true in zip(
        base.chunk(0, TOKENS).softmax(-1), arrays["topk_ids"], logits.softmax(-1), strict=True
    ):
        others = [token for token in range(VOCAB) if token not in ids.tolist()]
        torch.testing.assert_close(
            probs[others], true[others].mean().expand(len(others)), rtol=1e-5, atol=0
        )


def test_topk_arrays_have_the_types_of_the_format() -> None:
    arrays = encode_topk(torch.randn(TOKENS, VOCAB), 4)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in arrays.items()} == {
        "topk_logits": (torch.float32, (TOKENS, 4)),
        "topk_ids": (torch.int32, (TOKENS, 4)),
        "rest_logsumexp": (torch.float32, (TOKENS,)),
    }
    assert (arrays["topk_logits"].diff(dim=-1) <= 0).all()


def test_labels_outside_of_the_kept_tokens_have_their_own_probability() -> None:
    torch.manual_seed(3)
    logits = 3 * torch.randn(200, 23)
    labels = torch.randint(23, (200,))
    exact = logits.log_softmax(-1)
    arrays = encode_topk(logits, 5)
    base = TopKLogits(
        logits=arrays["topk_logits"],
        ids=arrays["topk_ids"].long(),
        rest=arrays["rest_logsumexp"],
        vocab_size=23,
        labels=labels,
        label_logprobs=exact.gather(-1, labels[:, None])[:, 0],
    )
    outside = ~(arrays["topk_ids"] == labels[:, None]).any(-1)
    assert 20 < outside.sum() < 180
    found = base.chunk(0, 200)
    torch.testing.assert_close(found.logsumexp(-1), logits.logsumexp(-1))
    known = torch.zeros(200, 23, dtype=torch.bool).scatter_(-1, arrays["topk_ids"].long(), True)
    known.scatter_(-1, labels[:, None], True)
    torch.testing.assert_close(found.log_softmax(-1)[known], exact[known], rtol=1e-5, atol=1e-4)
    # The others share evenly what is left.
    for row, mask in zip(found, known, strict=True):
        assert row[~mask].unique().numel() == 1
    for columns in (slice(0, 7), slice(7, 23), slice(22, 23)):
        assert torch.equal(base.chunk(3, 9, columns), found[3:9, columns])
