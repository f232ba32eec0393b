"""Every variant of the catalogue: its peculiarities, and what extraction and decoding rest on.

`test_cached_equals_live` and `test_generate` run every variant from end to end.
"""

from functools import partial
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding.aligned_lm import AlignedLM
from mav.pipeline.extraction.forward import run_decoder
from mav.pipeline.extraction.model_checks import check_base
from mav.pipeline.extraction.packing import PACKINGS, ForwardBatch, Packing, pack, separate_batch
from tests.support.models.architectures import CATALOGUE
from tests.support.models.char_tokenizer import some_pairs
from tests.support.models.peculiarities import Peculiarity
from tests.support.models.tiny import ARCHITECTURES, HIDDEN, LAYERS, tiny_base
from tests.support.models_page import PAGE, table, table_in, with_table
from tests.support.steering.heads import random_head
from tests.support.steering.live import relative
from tests.support.steering.steered import LAYER_INDICES

ALL_LAYERS = tuple(range(LAYERS + 1))
MAX_LENGTH = 128


@pytest.mark.parametrize(
    ("name", "peculiarity"),
    [
        pytest.param(name, peculiarity, id=f"{name}: {peculiarity.words}")
        for name, variant in CATALOGUE.items()
        for peculiarity in variant.peculiarities
    ],
)
def test_the_peculiarity_is_there(name: str, peculiarity: Peculiarity) -> None:
    assert peculiarity.shown(partial(tiny_base, name))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_variant_has_peculiarities(name: str) -> None:
    assert CATALOGUE[name].peculiarities
    assert tiny_base(name).model.config.model_type == CATALOGUE[name].model_type


@torch.no_grad()
@pytest.mark.parametrize("name", CATALOGUE)
def test_taps_are_hidden_states_and_logits_come_from_the_last(name: str) -> None:
    base = tiny_base(name)
    batch = separate_batch(some_pairs(), range(3))
    with base.hidden_state_hooks(ALL_LAYERS) as hooks:
        output = base.model(**batch.inputs, use_cache=False, output_hidden_states=True)
        assert len(output.hidden_states) == len(ALL_LAYERS)
        for layer in ALL_LAYERS:
            assert torch.equal(hooks.states[layer], output.hidden_states[layer]), layer
    assert relative(base.unembedding()(output.hidden_states[-1]), output.logits) < 1e-6


def predicting_states(base: BaseModel, batch: ForwardBatch) -> dict[int, torch.Tensor]:
    with base.hidden_state_hooks(ALL_LAYERS) as hooks:
        run_decoder(base, batch)
        return {
            layer: hooks.states[layer].flatten(0, 1)[batch.predict].clone() for layer in ALL_LAYERS
        }


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "packing"),
    [
        (name, packing)
        for name, it in CATALOGUE.items()
        for packing in PACKINGS[PACKINGS.index(it.packing) : -1]
        # A mask takes the place of a window, so a padded pair must fit in one.
        if packing == it.packing or not any("short window" in p.words for p in it.peculiarities)
    ],
)
def test_packing_changes_no_state(name: str, packing: Packing) -> None:
    base, pairs = tiny_base(name), some_pairs()
    batch, plain = pack(pairs, range(4), packing, base.dtype), separate_batch(pairs, range(4))
    assert batch.labels.tolist() == plain.labels.tolist()
    want, got = predicting_states(base, plain), predicting_states(base, batch)
    for layer in ALL_LAYERS:
        assert relative(got[layer], want[layer]) < 1e-5, layer
    again = predicting_states(base, plain)
    assert all(torch.equal(again[layer], want[layer]) for layer in ALL_LAYERS)


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_checks_before_an_extraction_find_the_quickest_way_that_changes_nothing(
    name: str,
) -> None:
    verdict = check_base(
        tiny_base(name),
        some_pairs(),
        ALL_LAYERS,
        MAX_LENGTH,
        must_factor=True,
    )
    assert verdict.packing == CATALOGUE[name].packing


def aligned_steps(
    base: BaseModel, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode greedily; return new tokens [B, T] and the logits each was chosen by, [B, T, V]."""
    with AlignedLM(base, random_head(HIDDEN), LAYER_INDICES, alpha=20.0):
        output = base.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", CATALOGUE)
def test_prompts_padded_on_the_left_decode_as_each_alone(name: str) -> None:
    base = tiny_base(name)
    text = torch.tensor(base.tokenizer("\n\nHuman: How?\n\nAssistant: Slowly").input_ids)
    prompts = [text, text[:4], text[3:14]]
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    tokens, logits = aligned_steps(base, ids, mask)
    for row, prompt in enumerate(prompts):
        alone, want = aligned_steps(base, prompt[None], torch.ones_like(prompt)[None])
        assert tokens[row].tolist() == alone[0].tolist()
        assert relative(logits[row], want[0]) < 1e-5


MAMBA_2 = {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
FALCON_H1 = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 16}
LLAMA_4 = {"num_local_experts": 2, "intermediate_size_mlp": 48}


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        # Its states are counted from the output of the first layer.
        ("mamba2", MAMBA_2, "not its hidden_states"),
        # Its decoder is not where transformers says that the base of a model is.
        ("llama4_text", LLAMA_4, "not its hidden_states"),
        # Its scale and its soft-cap have names of their own.
        ("falcon_h1", {"lm_head_multiplier": 0.5, **FALCON_H1}, "cannot be factored"),
        ("recurrent_gemma", {"logits_soft_cap": 3.0}, "cannot be factored"),
    ],
)
def test_an_architecture_that_is_not_understood_is_refused(
    model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BaseModelError, match=message):
        check_base(
            tiny_base("llama", model_type=model_type, **settings),
            some_pairs(),
            ALL_LAYERS,
            MAX_LENGTH,
            must_factor=True,
        )


def test_the_tests_that_go_over_architectures_go_over_the_catalogue() -> None:
    assert list(ARCHITECTURES) == list(CATALOGUE)


def test_the_table_of_the_readme_is_the_one_of_the_catalogue() -> None:
    assert table_in(PAGE.read_text(encoding="utf-8")) == table(CATALOGUE.values()), (
        "docs/models.md's table of models is not what the tests cover: "
        "run `python -m tests.support.models_page --write`"
    )


def test_writing_the_table_changes_nothing_else() -> None:
    readme = PAGE.read_text(encoding="utf-8")
    other = with_table(readme, "| another |")
    assert table_in(other) == "| another |"
    assert with_table(other, table_in(readme)) == readme
