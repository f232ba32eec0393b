"""Decoding with a model and a head that the user holds, which stay as they were."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import DataError, UsageError
from mav.pipeline.decoding.create import create_mav
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from mav.pipeline.head.model import AlignmentHead
from tests.support.models.tiny import make_cache, tiny_base
from tests.support.models.users_model import plain_base, state_of, users_model
from tests.support.steering.heads import write_head
from tests.support.steering.steered import steered

DECODING = GenerationOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("head")
    return write_head(root / "head", make_cache(root, tiny_base(), pairs=8))


def test_it_says_what_a_base_of_its_weights_says_and_is_left_as_it_was(folder: str) -> None:
    model, tokenizer = users_model()
    before = state_of(model)
    own = MAVInference(folder, plain_base(model, tokenizer))
    with MAVInference(folder, model, tokenizer) as mav:
        for alpha in (0.0, 2.0):
            assert mav.generate("Hi", alpha, DECODING).tokens == (
                own.generate("Hi", alpha, DECODING).tokens
            )
        assert mav.score("Hi", "there", 2.0) == own.score("Hi", "there", 2.0)
        assert (
            "".join(mav.stream("Hi", 2.0, DECODING)) == own.generate("Hi", 2.0, DECODING).response
        )
        assert {**state_of(model), "hooks": None} == {**before, "hooks": None}
        with mav.steering(1.0) as steered_model:
            assert steered_model is model and not model.training
        assert {**state_of(model), "hooks": None} == {**before, "hooks": None}
    assert state_of(model) == before


def test_after_errors_it_is_as_it_was(folder: str, tmp_path: Path) -> None:
    model, tokenizer = users_model()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="stop"), MAVInference(folder, model, tokenizer) as mav:
        with pytest.raises(DataError):
            mav.generate("word " * 400, 1.0, DECODING)
        with pytest.raises(RuntimeError, match="inside"), mav.steering(1.0):
            raise RuntimeError("inside")
        with pytest.raises(ValueError, match="forward"), mav.steering(1.0) as inside:
            model.get_decoder().register_forward_pre_hook(fail, prepend=True)
            inside(torch.tensor([[1]]))
        model.get_decoder()._forward_pre_hooks.clear()
        raise RuntimeError("stop")
    assert state_of(model) == before
    with pytest.raises(UsageError, match="dtype: asked for bfloat16, but the given base"):
        MAVInference(folder, model, tokenizer, dtype="bfloat16")
    other, _ = users_model(vocab_size=320)
    kept = state_of(other)
    with pytest.raises(Exception, match="vocabulary of 300 tokens"):
        MAVInference(folder, other, tokenizer)
    assert state_of(other) == kept


def fail(*_: object) -> None:
    raise ValueError("forward")


def test_a_forgotten_object_leaves_no_hooks(folder: str) -> None:
    model, tokenizer = users_model()
    before = state_of(model)
    mav = MAVInference(folder, model, tokenizer)
    assert state_of(model)["hooks"] != before["hooks"]
    del mav
    gc.collect()
    assert state_of(model) == before


def test_switching_lends_the_other_and_gives_the_first_back(folder: str) -> None:
    model, tokenizer = users_model()
    other, _ = users_model(seed=3)
    before = state_of(model), state_of(other)
    mav = MAVInference(folder, model, tokenizer)
    mav.switch_base_model(other, tokenizer)
    assert state_of(model) == before[0]
    assert mav.base.model is other
    mav.close()
    assert state_of(other) == before[1]


def test_a_new_head_on_a_users_model() -> None:
    model, tokenizer = users_model()
    before = state_of(model)
    with create_mav(model, tokenizer=tokenizer, pooled_size=16, expansion_size=8) as mav:
        assert mav.generate("Hi", 5.0, DECODING).tokens == mav.generate("Hi", 0.0, DECODING).tokens
    assert state_of(model) == before


def test_a_head_in_memory_says_what_its_folder_says_and_stays_as_it_was(folder: str) -> None:
    head = AlignmentHead.from_pretrained(folder).train()
    before = {name: weight.data_ptr() for name, weight in head.named_parameters()}
    base = tiny_base()
    of_folder = MAVInference(folder, base).generate("Hi", 2.0, DECODING).tokens
    mav = MAVInference(head, tiny_base())
    assert mav.generate("Hi", 2.0, DECODING).tokens == of_folder
    assert head.training and all(parameter.requires_grad for parameter in head.parameters())
    assert {name: weight.data_ptr() for name, weight in head.named_parameters()} == before
    assert mav.head is not head
    # What training goes on to change, decoding follows.
    with torch.no_grad():
        head.project.weight.zero_()
    assert mav.generate("Hi", 2.0, DECODING).tokens == mav.generate("Hi", 0.0, DECODING).tokens


def test_a_head_of_another_type_is_copied(folder: str) -> None:
    head = AlignmentHead.from_pretrained(folder)
    mav = MAVInference({"one": head}, tiny_base(dtype=torch.bfloat16))
    assert (mav.heads["one"].dtype, head.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (lambda: steered().head, "AlignmentHead that does not say which states it reads"),
        (lambda: 3, "head: got int, expected a folder, a hub id or an AlignmentHead"),
    ],
)
def test_what_cannot_be_a_head(head: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MAVInference(head(), tiny_base())


def test_a_tokenizer_without_its_model_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="tokenizer: got one without its model"):
        MAVInference(folder, tokenizer=tiny_base().tokenizer)
