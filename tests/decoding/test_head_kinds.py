"""Heads that shift the last state, and heads of PALC's form, on every architecture."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mav.cache_schema.errors import BaseModelError, MismatchError, UsageError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.decoding.create import create_mav
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.runtime.choices import HeadKind
from tests.support.models.tiny import ARCHITECTURES, HIDDEN, save_base, tiny_base
from tests.support.steering.heads import random_head, size_option
from tests.support.steering.live import relative
from tests.support.steering.steered import LAYER_INDICES, products_with_the_vocabulary, steered

IDS = torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(3))
ALPHAS = [2.0, 0.0, -3.0]


def states_of(output: Any) -> Tensor:
    return torch.stack([output.hidden_states[layer] for layer in LAYER_INDICES], dim=-2)


def keeping(aligned: AlignedLM, alpha: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """Logits of a pass, and those of the base in it."""
    with aligned.steering(alpha):
        aligned.keep_base_logits = True
        logits = aligned.base.model(IDS, **more).logits
        base = aligned.base_logits
    assert base is not None
    return logits, base


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shifted_state_goes_through_the_models_own_output(architecture: str) -> None:
    base, head = tiny_base(architecture), random_head(HIDDEN, kind="unembedding")
    plain = base.model(IDS, output_hidden_states=True)
    shift = torch.tensor(ALPHAS).reshape(3, 1, 1) * head(states_of(plain))
    unembedding = base.unembedding()
    want = unembedding(plain.hidden_states[-1] + shift)
    if unembedding.softcap is None:
        # The same in words of the logits: z_base + alpha * scale * W_U f.
        by_vector = plain.logits + unembedding.scale * shift @ unembedding.weight.t()
        assert relative(want, by_vector) < 1e-5
    with AlignedLM(base, head, LAYER_INDICES) as aligned:
        with aligned.steering(ALPHAS):
            got = base.model(IDS).logits
        kept, before = keeping(aligned, ALPHAS)
        assert torch.equal(base.model(IDS).logits, plain.logits)
    assert relative(got, want) < 1e-5
    assert relative(got[0], plain.logits[0]) > 0.01
    assert relative(got[1], plain.logits[1]) < 1e-6
    assert relative(kept, got) < 1e-5
    assert relative(before, plain.logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gemma2-window", "cohere"])
def test_a_bottleneck_adds_to_the_logits(architecture: str) -> None:
    base, head = tiny_base(architecture), random_head(HIDDEN, kind="bottleneck")
    plain = base.model(IDS, output_hidden_states=True)
    want = plain.logits + torch.tensor(ALPHAS).reshape(3, 1, 1) * head(states_of(plain))
    with AlignedLM(base, head, LAYER_INDICES, alpha=ALPHAS):
        assert relative(base.model(IDS).logits, want) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("keep", [0, 1, 5, torch.tensor([0, 3])], ids=str)
def test_strengths_go_to_the_positions_that_are_kept(keep: Any) -> None:
    base, head = tiny_base("gemma2"), random_head(HIDDEN, kind="unembedding")
    plain = base.model(IDS, output_hidden_states=True)
    places = slice(-keep, None) if isinstance(keep, int) else keep
    count = IDS[:, places].shape[1]
    alpha = torch.linspace(-3, 3, 3 * count).reshape(3, count)
    shift = alpha[..., None] * head(states_of(plain)[:, places])
    want = base.unembedding()(plain.hidden_states[-1][:, places] + shift)
    with AlignedLM(base, head, LAYER_INDICES) as aligned:
        got, before = keeping(aligned, alpha, logits_to_keep=keep)
    assert relative(got, want) < 1e-5
    assert relative(before, plain.logits[:, places]) < 1e-5


def test_one_product_a_pass_and_twice_the_rows_only_where_the_base_is_asked_for() -> None:
    mav = steered(kind="unembedding")
    decoding = mav.decoding(max_new_tokens=4)
    assert products_with_the_vocabulary(mav, lambda: mav.generate("Hi", 3.0, decoding)) == [1] * 4
    assert products_with_the_vocabulary(mav, lambda: mav.score("Hi", "No.", 3.0)) == [2]
    assert products_with_the_vocabulary(mav, lambda: mav.score("Hi", "No.", 0.0)) == [1]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gemma2-window", "cohere", "phi"])
@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_in_bfloat16_a_shift_keeps_its_digits(architecture: str, alpha: float) -> None:
    """By the sum in bfloat16 little would be left of a small one."""
    base = tiny_base(architecture, dtype=torch.bfloat16)
    head = random_head(HIDDEN, kind="unembedding").bfloat16()
    plain = base.model(IDS, output_hidden_states=True)
    state, unembedding = plain.hidden_states[-1], base.unembedding()
    exact = dataclasses.replace(
        unembedding,
        weight=unembedding.weight.float(),
        bias=None if unembedding.bias is None else unembedding.bias.float(),
    )
    shift = alpha * head(states_of(plain)).float()
    want = exact(state.float() + shift) - exact(state.float())
    with AlignedLM(base, head, LAYER_INDICES) as aligned:
        got, before = keeping(aligned, alpha)
        with aligned.steering([alpha, 0.0, alpha]):
            mixed = base.model(IDS).logits
    assert got.dtype == before.dtype == torch.float32
    # A bias is in the rounded product, and taken out of it again.
    assert relative(got - before, want) < (0.03 if unembedding.bias is None else 0.1)
    assert relative(before, plain.logits) < 0.01
    assert relative(mixed[0], got[0]) < 0.01
    assert relative(mixed[1], plain.logits[1]) < 0.01
    rounded = exact((state.float() + shift).bfloat16().float()) - exact(state.float())
    assert alpha == 1 or relative(rounded, want) > 0.1


@pytest.mark.parametrize("kind", ["mlp", "unembedding", "bottleneck"])
def test_a_new_head_of_any_kind_leaves_a_base_as_it_is(tmp_path: Path, kind: HeadKind) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    mav = create_mav(folder, dtype=torch.float32, **size_option(kind, 8))
    assert mav.head.config.kind == kind
    with mav.steering(5.0) as model:
        got = model(IDS).logits
    assert torch.equal(got.float(), tiny_base().model(IDS).logits)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"head_type": "unembedding", "expansion_size": 8}, "expansion_size: got 8, which a head"),
        ({"rank": 8}, "rank: got 8, which a head of kind mlp has not"),
        ({"head_type": "linear"}, "kind: got 'linear', expected mlp, unembedding, bottleneck"),
    ],
)
def test_sizes_of_another_kind_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MAVInference.with_new_head(tiny_base(), **given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_linear_in_its_last_state(architecture: str) -> None:
    tiny_base(architecture).require_linear_output()
    tiny_base(architecture, dtype=torch.bfloat16).require_linear_output()


def divided_before(base: BaseModel) -> None:
    """As MiniCPM does it."""
    embedding = base.model.get_output_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: (args[0] / 4,))


def bent_after(base: BaseModel) -> None:
    embedding = base.model.get_output_embeddings()
    embedding.register_forward_hook(lambda _, __, out: 10 * torch.tanh(out / 10))

    def bend(_: Any, __: Any, output: Any) -> Any:
        output.logits = output.logits.relu()
        return output

    base.model.register_forward_hook(bend)


@pytest.mark.parametrize("change", [divided_before, bent_after])
def test_a_base_that_is_not_is_refused(change: Callable[[BaseModel], None]) -> None:
    base = tiny_base()
    change(base)
    with pytest.raises(BaseModelError, match=r"llama: this model's logits are not its last state"):
        steered(base, "unembedding")
    assert steered(base, "bottleneck").generate_response("Hi", max_new_tokens=2) is not None


def test_a_base_of_another_width_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    mav = steered(kind="unembedding")
    wider = save_base(tiny_base(hidden_size=2 * HIDDEN, intermediate_size=64), tmp_path / "wider")
    with pytest.raises(MismatchError, match=r"adds to last states 32 wide, but the base has.* 64"):
        mav.switch_base_model(wider)
    assert mav.base.hidden_size == HIDDEN
