"""Several heads in one pass: the sum of what each adds, whatever their kinds."""

from itertools import product

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.head.model import AlignmentHead
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import HIDDEN, tiny_base
from tests.support.steering.heads import KINDS
from tests.support.steering.live import relative
from tests.support.steering.several import (
    alone_on,
    made_head,
    steered_by,
    summed_logits,
    together,
)
from tests.support.steering.steered import LAYER_INDICES, products_with_the_vocabulary

IDS = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(3))
PAIRS = [*product(KINDS, KINDS)]
ALPHAS = [(2.0, -1.5), (0.0, 1.0), (-3.0, 0.0)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_one_head_twice_at_a_half_is_that_head_once(kind: HeadKind) -> None:
    base = tiny_base(dtype=torch.float64)
    head = made_head(base, kind, 1)
    with AlignedLM(base, head.head, LAYER_INDICES) as aligned, aligned.steering(1.0):
        once = base.model(IDS).logits
    with AlignedLM(base, [head.head, head.head], LAYER_INDICES) as aligned:
        with aligned.steering([0.5, 0.5]):
            twice = base.model(IDS).logits
        with aligned.steering([0.5, 0.25]):
            other = base.model(IDS).logits
    assert relative(twice, once) < 1e-7
    assert relative(other, once) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gemma2-window", "cohere"])
@pytest.mark.parametrize("kinds", PAIRS, ids="+".join)
def test_two_heads_are_the_sum_of_each_computed_alone(
    architecture: str, kinds: tuple[HeadKind, HeadKind]
) -> None:
    base, untouched = tiny_base(architecture), tiny_base(architecture)
    mav = steered_by(base, *kinds)
    plain = untouched.model(IDS).logits
    aligned = mav.joined.aligned
    want = summed_logits(mav, untouched, IDS, ALPHAS)
    with mav.steering([dict(zip("ab", row, strict=True)) for row in ALPHAS]) as model:
        got = model(IDS).logits
    with aligned.steering(ALPHAS):
        aligned.keep_base_logits = True
        kept, before = base.model(IDS).logits, aligned.base_logits
    assert before is not None
    assert relative(got, want) < 1e-5
    assert relative(kept, want) < 1e-5
    assert relative(before, plain) < 1e-5
    assert relative(got[2], plain[2]) > 0.01
    with mav.steering(0) as model:
        assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_a_loss_is_that_of_the_summed_logits() -> None:
    base, untouched = tiny_base(), tiny_base()
    mav = steered_by(base, "mlp", "unembedding")
    logits = summed_logits(mav, untouched, IDS, [(1.0, -2.0)] * 3)
    want = untouched.model.loss_function(logits=logits, labels=IDS, vocab_size=logits.shape[-1])
    with mav.steering({"a": 1.0, "b": -2.0}) as model:
        assert relative(model(IDS, labels=IDS).loss, want) < 1e-5


@torch.no_grad()
def test_heads_that_pool_differently_read_their_own_widths() -> None:
    base, untouched = tiny_base(), tiny_base()
    mav = together(base, a=made_head(base, "mlp", 1), b=made_head(base, "mlp", 2, size=HIDDEN // 2))
    want = summed_logits(mav, untouched, IDS, ALPHAS)
    with mav.joined.aligned.steering(ALPHAS):
        assert relative(base.model(IDS).logits, want) < 1e-5


def test_unembedding_heads_cost_one_product_together_and_no_matrix_of_their_own() -> None:
    mav = steered_by(tiny_base(), "unembedding", "unembedding", "unembedding")
    decoding = mav.decoding(max_new_tokens=4)
    alpha = {"a": 1.0, "b": -2.0, "c": 0.5}
    assert products_with_the_vocabulary(mav, lambda: mav.generate("Hi", alpha, decoding)) == [1] * 4
    assert products_with_the_vocabulary(mav, lambda: mav.score("Hi", "No.", alpha)) == [2]
    widest = max(p.shape[0] for h in mav.heads.values() for p in h.parameters())
    assert widest < mav.base.vocab_size


def test_states_are_pooled_once_and_a_head_at_0_is_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_base()
    mav = together(base, **{name: made_head(base, "mlp", 1, size=HIDDEN // 2) for name in "abc"})
    pooled: list[int] = []
    plain = AlignmentHead.pooled

    def counted(self: AlignmentHead, states: torch.Tensor) -> torch.Tensor:
        pooled.append(states.shape[-1])
        return plain(self, states)

    monkeypatch.setattr(AlignmentHead, "pooled", counted)
    computed: list[str] = []
    for name, head in mav.heads.items():
        head.register_forward_hook(lambda _, __, ___, name=name: computed.append(name))
    with mav.steering({"a": 1.0, "b": 0.0, "c": 2.0}) as model:
        model(IDS)
    assert pooled == [HIDDEN]
    assert computed == ["a", "c"]


def test_a_head_alone_by_name_is_that_head() -> None:
    head = made_head(tiny_base(), "mlp", 1)
    named, plain = together(tiny_base(), only=head), alone_on(tiny_base(), head)
    how = plain.decoding(max_new_tokens=6)
    got, want = named.generate("Hi", {"only": 3.0}, how), plain.generate("Hi", 3.0, how)
    assert (got.tokens, got.response) == (want.tokens, want.response)
    assert (got.alpha, want.alpha) == ({"only": 3.0}, 3.0)


def test_there_is_no_single_head_among_several() -> None:
    mav = steered_by(tiny_base(), "mlp", "mlp")
    with pytest.raises(UsageError, match=r"there are a, b; use `heads`"):
        _ = mav.head
    assert [*mav.heads] == ["a", "b"]
    aligned = mav.joined.aligned
    two = aligned.steering([(1.0, 1.0), (2.0, 2.0)])
    with two, pytest.raises(UsageError, match="got 2 strengths, but 3 rows"):
        mav.base.model(IDS)
