"""A model that the user has loaded is a base like any other, and stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.base.given.wrap import loaded_base
from mav.pipeline.base.loading import load_base
from tests.support.models.tiny import save_base, tiny_base
from tests.support.models.users_model import state_of, users_model


def test_it_is_left_as_it_was() -> None:
    model, tokenizer = users_model()
    before = state_of(model)
    base = loaded_base(model, tokenizer)
    assert base is not None and base.model is model
    assert base.fingerprint().id == "memory:LlamaForCausalLM"
    base.unembedding()
    base.require_linear_output()
    assert state_of(model) == before
    with pytest.raises(RuntimeError, match="stop"), base.in_use():
        assert not model.training and not model.config.output_attentions
        raise RuntimeError("stop")
    assert state_of(model) == before


def test_what_is_in_use_counts_alone() -> None:
    model, tokenizer = users_model()
    base = loaded_base(model, tokenizer)
    assert base is not None
    first = base.fingerprint()
    model.eval()
    model.config.output_attentions = False
    assert base.fingerprint() == first
    next(model.parameters()).data += 1
    assert base.fingerprint().weights_digest != first.weights_digest


def test_its_tokenizer_is_that_of_the_files_it_names(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    base = loaded_base(model)
    assert base is not None
    assert base.tokenizer.get_vocab() == load_base(folder, device="cpu").tokenizer.get_vocab()


def test_a_processor_has_a_tokenizer() -> None:
    model, tokenizer = users_model()

    class Processor:
        pass

    processor: Any = Processor()
    processor.tokenizer = tokenizer
    base = loaded_base(model, processor)
    assert base is not None and base.tokenizer is tokenizer


def headless() -> nn.Module:
    model: nn.Module = users_model()[0].model
    return model


@pytest.mark.parametrize(
    ("given", "tokenizer", "told"),
    [
        (lambda: users_model()[0], None, "tokenizer: got none with a LlamaForCausalLM that names"),
        (lambda: users_model()[0], "gpt2", "tokenizer: got str, expected one of transformers"),
        (
            lambda: nn.Linear(2, 2),
            None,
            r"base_model: got Linear, expected .* \(the one inside it\)",
        ),
        (lambda: 7, None, "base_model: got int, expected a hub id, a folder, or a loaded transf"),
        (headless, tiny_base().tokenizer, "got LlamaModel, which gives no logits"),
        (lambda: "a/b", tiny_base().tokenizer, "with a base in files, which brings its own"),
        (tiny_base, tiny_base().tokenizer, "with a loaded base, which brings its own"),
    ],
)
def test_what_cannot_be_a_base(given: Any, tokenizer: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        loaded_base(given(), tokenizer)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model, _ = users_model(vocab_size=64)
    with pytest.raises(BaseModelError, match="embedding has 64 rows"):
        loaded_base(model, tiny_base().tokenizer)


def test_names_of_files_are_no_loaded_base() -> None:
    assert loaded_base("some/base") is None
    assert loaded_base(Path("here")) is None
    base = tiny_base()
    assert loaded_base(base) is base
