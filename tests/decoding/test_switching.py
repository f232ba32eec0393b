"""Putting another base under a live head: freed first, refused with reasons, never half done."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mav.cache_schema.errors import BaseModelError, MismatchError, UsageError
from mav.pipeline.base.loading import load_source
from mav.pipeline.base.model import BaseModel
from mav.pipeline.decoding import switching
from mav.pipeline.decoding.attach import check_compatible
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import AttachOptions, GenerationOptions
from mav.pipeline.decoding.trained_head import new_head
from mav.pipeline.runtime.choices import Quantize
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.steering.heads import write_head
from tests.support.steering.steered import plain_generate

DECODING = GenerationOptions(max_new_tokens=8)
FLOAT32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of bases: the one trained on, and others that differ in one thing each."""
    root = tmp_path_factory.mktemp("bases")
    save_base(tiny_base(), root / "trained")
    save_base(tiny_base(seed=3), root / "weights")
    save_base(tiny_base(hidden_size=48, seed=3), root / "wider")
    save_base(tiny_base(hidden_size=16, num_attention_heads=2, head_dim=8), root / "narrower")
    save_base(tiny_base(num_hidden_layers=6, seed=3), root / "deeper")
    save_base(tiny_base(vocab_size=320), root / "vocabulary")
    with_other_tokenizer(save_base(tiny_base(), root / "tokenizer"))
    broken = save_base(tiny_base(seed=4), root / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return root


def with_other_tokenizer(folder: Path) -> None:
    """Swap two tokens of a saved tokenizer."""
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    swapped = text.replace('"Q":', '"@":', 1).replace('"Z":', '"Q":', 1).replace('"@":', '"Z":', 1)
    assert swapped != text
    path.write_text(swapped, encoding="utf-8")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, bases: Path) -> str:
    root = tmp_path_factory.mktemp("head")
    return write_head(root / "head", make_cache(root, tiny_base(), pairs=8))


@pytest.fixture
def mav(head: str, bases: Path) -> MAVInference:
    return MAVInference(head, str(bases / "trained"), **FLOAT32)


def tokens(mav: MAVInference, alpha: float = 3.0) -> tuple[int, ...]:
    return mav.generate("Hi there", alpha, DECODING).tokens


@pytest.mark.parametrize("other", ["weights", "wider", "narrower", "deeper"])
def test_a_live_object_answers_as_one_begun_with_the_other_base(
    head: str, bases: Path, mav: MAVInference, other: str
) -> None:
    first = tokens(mav)
    mav.switch_base_model(str(bases / other))
    fresh = MAVInference(head, str(bases / other), **FLOAT32)
    assert tokens(mav) == tokens(fresh) != first
    assert tokens(mav) != tokens(mav, 0.0) == tokens(fresh, 0.0)
    mav.switch_base_model(str(bases / "trained"))
    assert tokens(mav) == first


def test_the_base_in_use_is_freed_before_the_other_is_loaded(
    mav: MAVInference, bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(mav)
    list(mav.stream_response("Hi", 1.0, max_new_tokens=2))
    model = weakref.ref(mav.base.model)
    weight = weakref.ref(mav.base.model.get_output_embeddings().weight)
    alive: list[bool] = []

    def load(*arguments: Any, **options: Any) -> BaseModel:
        alive.append(model() is not None or weight() is not None)
        return load_source(*arguments, **options)

    monkeypatch.setattr(switching, "load_source", load)
    gc.disable()  # what frees it is the switch, not luck
    try:
        mav.switch_base_model(str(bases / "weights"))
    finally:
        gc.enable()
    assert alive == [False]


def test_a_base_that_cannot_be_loaded_leaves_the_one_before(mav: MAVInference, bases: Path) -> None:
    first = tokens(mav)
    with pytest.raises(BaseModelError, match="cannot be read as safetensors"):
        mav.switch_base_model(str(bases / "broken"))
    assert tokens(mav) == first
    assert mav.base.source is not None
    assert mav.base.source.id == str(bases / "trained")


def test_where_the_one_before_cannot_be_had_back_the_error_says_so(
    head: str, bases: Path, tmp_path: Path
) -> None:
    folder = save_base(tiny_base(), tmp_path / "gone")
    mav = MAVInference(head, str(folder), **FLOAT32)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError):
        mav.switch_base_model(str(bases / "broken"))
    with pytest.raises(BaseModelError, match="switch to one first"):
        tokens(mav)
    mav.switch_base_model(str(bases / "trained"))
    assert tokens(mav)


def test_a_base_built_in_memory_stays_when_another_cannot_be_loaded(head: str, bases: Path) -> None:
    base = tiny_base()
    mav = MAVInference(head, base)
    first = tokens(mav)
    with pytest.raises(BaseModelError):
        mav.switch_base_model(str(bases / "broken"))
    assert mav.base is base
    assert tokens(mav) == first


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ("vocabulary", MismatchError, r"300 tokens \(memory:.* has 320 \(/.*/vocabulary\)"),
        ("tokenizer", MismatchError, r"other tokenizers .*`allow_tokenizer_mismatch=True`"),
        ("nowhere", BaseModelError, "nowhere"),
    ],
)
def test_a_refused_base_is_never_loaded(
    mav: MAVInference,
    bases: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
    error: type[Exception],
    message: str,
) -> None:
    first, base = tokens(mav), mav.base
    monkeypatch.setattr(
        switching,
        "load_source",
        lambda *_, **__: pytest.fail("it was loaded"),
    )
    with pytest.raises(error, match=message):
        mav.switch_base_model(str(bases / other))
    assert mav.base is base
    assert tokens(mav) == first


@pytest.mark.parametrize("other", ["vocabulary", "tokenizer"])
def test_a_refused_base_is_never_loaded_at_the_beginning(
    head: str, bases: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(
        "mav.pipeline.decoding.switching.load_source", lambda *_: pytest.fail("it was loaded")
    )
    with pytest.raises(MismatchError):
        MAVInference(head, str(bases / other), **FLOAT32)


def test_another_tokenizer_of_the_same_size_where_the_user_allows_it(
    head: str, bases: Path, messages: list[str]
) -> None:
    mav = MAVInference(
        head,
        str(bases / "tokenizer"),
        allow_tokenizer_mismatch=True,
        **FLOAT32,
    )
    assert ["has another tokenizer" in line for line in messages] == [True, False]
    assert tokens(mav) != tokens(mav, 0.0)
    with pytest.raises(MismatchError, match="320"):
        mav.switch_base_model(str(bases / "vocabulary"))


def test_other_weights_are_said_once(head: str, bases: Path, messages: list[str]) -> None:
    mav = MAVInference(head, str(bases / "trained"), **FLOAT32)
    mav.switch_base_model(str(bases / "weights"))
    # The base it was trained on was built in memory: its digest is another than its file's.
    first, second = messages
    assert "/trained is another base than the head was trained on (memory:" in first
    assert "/weights is another base than the head was trained on (memory:" in second
    assert "reading its layers [1, 2, 4]" in second
    tokens(mav)
    assert len(messages) == 2


def test_of_the_base_it_was_trained_on_there_is_nothing_to_say(
    head: str, messages: list[str]
) -> None:
    MAVInference(head, tiny_base())
    assert messages == []


def test_a_deeper_base_gets_the_same_choice_of_layers(
    mav: MAVInference, bases: Path, messages: list[str]
) -> None:
    mav.switch_base_model(str(bases / "deeper"))
    assert "reading its layers [1, 3, 6]" in messages[0]


def test_a_loaded_base_takes_the_place_and_the_other_is_as_it_was(
    mav: MAVInference, head: str
) -> None:
    before = mav.base
    mav.switch_base_model(tiny_base(seed=3))
    assert tokens(mav) == tokens(MAVInference(head, tiny_base(seed=3)))
    prompt = before.tokenizer("Hi there")["input_ids"]
    got = plain_generate(before, prompt, max_new_tokens=8)
    assert got == plain_generate(tiny_base(), prompt, max_new_tokens=8)
    assert not before.model._forward_hooks


def test_a_type_of_fewer_digits_in_between_costs_the_head_nothing(head: str) -> None:
    mav = MAVInference(head, tiny_base())
    want = mav.head.project.weight.clone()
    mav.switch_base_model(tiny_base(dtype=torch.bfloat16))
    assert mav.head.dtype == torch.bfloat16
    mav.switch_base_model(tiny_base())
    assert torch.equal(mav.head.project.weight, want)


def test_a_closed_object_says_so_and_can_be_used_again(mav: MAVInference, bases: Path) -> None:
    first = tokens(mav)
    mav.close()
    mav.close()
    for use in (tokens, lambda it: list(it.stream_response("Hi")), lambda it: it.head):
        with pytest.raises(BaseModelError, match="No base is loaded"):
            use(mav)
    mav.switch_base_model(str(bases / "trained"))
    assert tokens(mav) == first


def test_a_chat_form_is_asked_of_the_other_base_too(bases: Path, head: str) -> None:
    base = tiny_base()
    with pytest.raises(UsageError, match="no chat template"):
        MAVInference(head, base, prompt_form="chat")
    assert not base.model._forward_hooks


@pytest.mark.parametrize(
    ("trained", "stored", "loaded", "told"),
    [
        (None, "bitsandbytes nf4", "nf4", ["is quantized (bitsandbytes nf4), and the base the"]),
        ("bitsandbytes nf4", None, None, ["is in full precision, and the base the head was"]),
        ("GGUF Q4_K_M", "GGUF Q4_K_M", None, []),
    ],
)
def test_the_same_files_differ_in_what_they_are_loaded_as_alone(
    monkeypatch: pytest.MonkeyPatch,
    trained: str | None,
    stored: str | None,
    loaded: Quantize | None,
    told: list[str],
) -> None:
    base = tiny_base()
    head, record = new_head(base), base.fingerprint()
    head = replace(head, base=replace(record, quantization=trained))
    monkeypatch.setattr(BaseModel, "fingerprint", lambda _: replace(record, quantization=stored))
    _, found = check_compatible(replace(base, quantize=loaded), head, AttachOptions())
    assert found.notes == ()
    assert len(found.warnings) == len(told)
    assert all(part in line for part, line in zip(told, found.warnings, strict=True))
