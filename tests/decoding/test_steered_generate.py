"""What transformers' `generate()` can be asked for while a base is steered."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import UsageError
from mav.pipeline.decoding.inference import MAVInference
from tests.support.steering.steered import steered, varied_base

NEW = 8
COMMON: dict[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", params=["mlp", "unembedding"])
def mav(request: pytest.FixtureRequest) -> Iterator[MAVInference]:
    made = steered(varied_base("llama"), request.param)
    yield made
    made.close()


def ids_of(mav: MAVInference) -> torch.Tensor:
    text = "\n\nHuman: How do I mend a kite?\n\nAssistant:"
    ids: torch.Tensor = mav.base.tokenizer(text, return_tensors="pt")["input_ids"]
    return ids


def new_tokens(mav: MAVInference, **more: Any) -> list[int]:
    ids = ids_of(mav)
    with mav.steering(12.0) as model:
        found = model.generate(ids, **{**COMMON, **more})
    found = found if isinstance(found, torch.Tensor) else found.sequences
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize(
    "more",
    [
        {"assistant_early_exit": 2},
        {"assistant_early_exit": 1, "num_assistant_tokens": 3},
        {"assistant_model": varied_base("llama").model},
        {"prompt_lookup_num_tokens": 3},
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"output_hidden_states": True, "return_dict_in_generate": True, "output_logits": True},
        {"prefill_chunk_size": 4},
        {"logits_to_keep": 5},
    ],
    ids=lambda more: next(iter(more)),
)
def test_the_steered_greedy_answer_comes_however_it_is_made(
    mav: MAVInference, more: dict[str, Any]
) -> None:
    want = new_tokens(mav)
    assert want != mav.base.model.generate(ids_of(mav), **COMMON)[0, -NEW:].tolist()
    assert new_tokens(mav, **more) == want


def test_embeddings_in_place_of_tokens(mav: MAVInference) -> None:
    embedded = mav.base.model.get_input_embeddings()(ids_of(mav))
    with mav.steering(12.0) as model:
        found = model.generate(inputs_embeds=embedded, **COMMON)
    assert found[0].tolist() == new_tokens(mav)


def test_a_draft_that_fails_leaves_the_base_as_it_was(mav: MAVInference) -> None:
    def fail(*_: Any) -> None:
        if mav.base.num_hidden_layers == 2:
            raise RuntimeError("amid a draft")

    handle = mav.base.decoder.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="amid a draft"):
        new_tokens(mav, assistant_early_exit=2)
    handle.remove()
    assert mav.base.num_hidden_layers == 4
    assert len(new_tokens(mav)) == NEW


def test_a_pass_without_a_layer_the_head_reads_is_refused(mav: MAVInference) -> None:
    with mav.steering(1.0) as model:
        layers, model.model.layers = model.model.layers, model.model.layers[2:]
        with pytest.raises(UsageError, match="without its layer 1"):
            model(ids_of(mav))
        model.model.layers = layers
