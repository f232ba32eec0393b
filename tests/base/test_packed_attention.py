"""Attention over packed texts: against the plain formula, and leaving nothing behind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mav.pipeline.base.packed_attention import (
    NAME,
    _attend,
    packed_attention,
)
from mav.pipeline.extraction.forward import run_decoder
from mav.pipeline.extraction.packing import packed_batch, separate_batch
from tests.support.models.char_tokenizer import some_pairs
from tests.support.models.segments import LAYOUT, TOKENS, attend, states
from tests.support.models.tiny import tiny_base


def plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float = 0.25,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """The same, token by token and head by head, in float64."""
    out = torch.zeros(1, TOKENS, query.shape[1], 16, dtype=torch.float64)
    for one in LAYOUT.segments:
        places = [*range(one.prefix_start, one.prefix_start + one.prefix_length)]
        for token in range(one.start, one.start + one.length):
            places.append(token)
            seen = places[-(sliding_window or len(places)) :]
            for head in range(query.shape[1]):
                group = head * key.shape[1] // query.shape[1]
                scores = key[0, group, seen].double() @ query[0, head, token].double() * scaling
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                exp = scores.exp()
                total = exp.sum() + (0 if s_aux is None else s_aux[head].double().exp())
                out[0, token, head] = (exp / total) @ value[0, group, seen].double()
    return out


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sliding_window": 1},
        {"sliding_window": 3},
        {"sliding_window": 6},
        {"sliding_window": 1000},
        {"softcap": 0.7},
        {"softcap": 0.7, "sliding_window": 4},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0]), "sliding_window": 4},
    ],
    ids=str,
)
def test_a_token_gathers_what_the_formula_says(groups: int, settings: dict[str, Any]) -> None:
    qkv = states(4, groups)
    want = plainly(qkv[0], qkv[1], qkv[2], **settings)
    assert torch.allclose(attend(*qkv, **settings).double(), want, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 1, 3, 1000])
def test_the_kernel_for_texts_of_many_lengths(groups: int, window: int | None) -> None:
    qkv = [x.cuda() for x in states(4, groups, torch.bfloat16)]
    query, key, value = (x.cpu() for x in qkv)
    want = plainly(query, key, value, sliding_window=window)
    got = attend(*qkv, scaling=0.25, sliding_window=window).cpu().double()
    assert torch.allclose(got, want, atol=2e-2)


def test_a_mask_or_a_bias_of_the_models_own_is_refused() -> None:
    query, key, value = states(4, 4)
    mask = torch.zeros(1, 1, TOKENS, TOKENS)
    with packed_attention(tiny_base().decoder, LAYOUT):
        with pytest.raises(NotImplementedError):
            _attend(None, query, key, value, mask)
        with pytest.raises(NotImplementedError):
            _attend(None, query, key, value, None, position_bias=mask)
        with pytest.raises(NotImplementedError):
            _attend(None, query.repeat(2, 1, 1, 1), key, value, None)


def test_afterwards_the_model_attends_as_before() -> None:
    base, plain = tiny_base(), separate_batch(some_pairs(), range(2))
    before = base.config._attn_implementation
    assert before != NAME
    with torch.no_grad():
        want = base.model(**plain.inputs).logits
        run_decoder(base, packed_batch(some_pairs(), range(2)))
        assert torch.equal(base.model(**plain.inputs).logits, want)
    with pytest.raises(KeyError), packed_attention(base.decoder, LAYOUT):
        assert base.config._attn_implementation == NAME
        raise KeyError
    assert base.config._attn_implementation == before


def test_a_model_whose_attention_cannot_be_replaced_says_so() -> None:
    decoder = tiny_base("gptj").decoder
    with (
        pytest.raises(NotImplementedError, match="gptj"),
        packed_attention(decoder, LAYOUT),
    ):
        pytest.fail("it was replaced")
