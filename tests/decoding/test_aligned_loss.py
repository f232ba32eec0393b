"""The loss inside `steering` is that of the aligned logits, however it is asked for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mav.cache_schema.errors import UsageError
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import ARCHITECTURES
from tests.support.steering.steered import steered, varied_base
from tests.support.sweeps import sweep

ALPHA = 12.0
IDS = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(3))
LABELS = IDS.masked_fill(torch.arange(9) < 3, -100)


def cross_entropy(logits: Tensor, labels: Tensor = LABELS, **more: Any) -> Tensor:
    """Of every label under the logits one position before."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), **more)


# A head that acts on the state meets what an architecture does to its logits.
@sweep({"kind": ["unembedding", "mlp"], "architecture": ARCHITECTURES}, meet=1)
def test_of_every_architecture(architecture: str, kind: HeadKind) -> None:
    mav = steered(varied_base(architecture), kind)
    plain = mav.base.model(IDS, labels=LABELS)
    with mav.steering(ALPHA) as model:
        found = model(IDS, labels=LABELS)
    torch.testing.assert_close(found.loss, cross_entropy(found.logits), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.loss, cross_entropy(plain.logits), rtol=1e-5, atol=1e-5)
    assert abs(found.loss - plain.loss) > 0.01


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_what_the_loss_function_is_told_is_told_again(kind: HeadKind) -> None:
    mav = steered(kind=kind)
    shifted = F.pad(LABELS, (0, 1), value=-100)[:, 1:].contiguous()
    with mav.steering(ALPHA) as model:
        logits = model(IDS).logits
        counted = model(IDS, labels=LABELS, num_items_in_batch=7).loss
        ignored = model(IDS, labels=IDS, ignore_index=int(IDS[0, 4])).loss
        given = model(IDS, labels=IDS, shift_labels=shifted).loss
        placed = model(IDS, None, None, None, None, LABELS).loss
    torch.testing.assert_close(counted, cross_entropy(logits, reduction="sum") / 7)
    torch.testing.assert_close(given, cross_entropy(logits))
    torch.testing.assert_close(placed, cross_entropy(logits))
    torch.testing.assert_close(ignored, cross_entropy(logits, IDS, ignore_index=int(IDS[0, 4])))


@pytest.mark.parametrize("kind", ["mlp", "unembedding"])
def test_what_is_no_function_of_the_logits_stays_in_the_loss(kind: HeadKind) -> None:
    mav = steered(varied_base("mixtral"), kind)
    with mav.steering(ALPHA) as model:
        found = model(IDS, labels=LABELS, output_router_logits=True)
    balance = model.router_aux_loss_coef * found.aux_loss
    assert balance > 0
    torch.testing.assert_close(found.loss, cross_entropy(found.logits) + balance)


def test_no_loss_where_there_are_no_labels() -> None:
    mav = steered()
    with mav.steering(ALPHA) as model:
        assert model(IDS).loss is None


def test_at_alpha_zero_it_is_the_bases_own() -> None:
    mav = steered()
    with mav.steering(0.0) as model:
        assert torch.equal(model(IDS, labels=LABELS).loss, mav.base.model(IDS, labels=LABELS).loss)


def test_a_tuple_cannot_be_steered() -> None:
    mav = steered()
    with mav.steering(ALPHA) as model, pytest.raises(UsageError, match="return_dict: got False"):
        model(IDS, return_dict=False)
    assert isinstance(mav.base.model(IDS, return_dict=False), tuple)


def test_a_tuple_is_steered_where_the_state_is_what_is_shifted() -> None:
    mav = steered(kind="unembedding")
    with mav.steering(ALPHA) as model:
        logits = model(IDS, return_dict=False)[0]
        assert torch.equal(logits, model(IDS).logits)
    assert not torch.equal(logits, mav.base.model(IDS).logits)


def test_the_loss_beside_the_logits_of_the_base_is_refused() -> None:
    mav = steered(kind="unembedding")
    with mav.exclusive() as aligned, aligned.steering(ALPHA):
        aligned.keep_base_logits = True
        with pytest.raises(UsageError, match="labels: got some, expected none"):
            mav.base.model(IDS, labels=LABELS)
