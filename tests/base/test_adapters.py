"""Adapters, saved by PEFT or around a model: loaded, merged on request, left as they were."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mav.cache_schema.errors import BaseModelError, UsageError
from mav.pipeline.base.given.wrap import loaded_base
from mav.pipeline.base.loading import load_base
from mav.pipeline.base.source import resolve_base
from mav.pipeline.decoding.inference import MAVInference
from mav.pipeline.decoding.options import GenerationOptions
from tests.support.models.tiny import make_cache, save_base, tiny_base
from tests.support.models.users_model import state_of
from tests.support.steering.heads import write_head

# PEFT asks transformers by names that are going out of use.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base, and beside it a LoRA adapter of it that changes what it says."""
    base = save_base(tiny_base(), tmp_path / "base")
    wrapped = lora(base)
    wrapped.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def lora(base: Path) -> Any:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("merge", [False, True])
def test_a_folder_is_its_base_with_the_adapter(folder: Path, merge: bool) -> None:
    expected = logits(lora(folder.parent / "base"))
    base = load_base(folder, dtype="float32", device="cpu", merge_adapter=merge)
    torch.testing.assert_close(logits(base.model), expected)
    assert not torch.allclose(
        logits(load_base(folder.parent / "base", dtype="float32").model), expected
    )
    layers = [name for name, _ in base.model.named_modules() if "lora_A" in name]
    assert bool(layers) is not merge
    assert base.id == str(folder.resolve())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_its_identity_is_that_of_both(folder: Path) -> None:
    plain = resolve_base(str(folder.parent / "base")).weights_digest()
    digest = resolve_base(str(folder)).weights_digest()
    assert digest != plain
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    assert resolve_base(str(folder)).weights_digest() not in (digest, plain)


def test_a_cache_of_an_adapter_is_one_of_its_merged_weights(folder: Path, tmp_path: Path) -> None:
    beside = load_base(folder, dtype="float32", device="cpu")
    cache = make_cache(tmp_path / "one", beside, pairs=8)
    head = write_head(tmp_path / "head", cache)
    merged = load_base(folder, dtype="float32", device="cpu", merge_adapter=True)
    options = GenerationOptions(max_new_tokens=6)
    assert (
        MAVInference(head, merged).generate("Hi", 1.0, options).tokens
        == MAVInference(head, str(folder), dtype="float32").generate("Hi", 1.0, options).tokens
    )


def test_a_wrapped_model_is_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    wrapped = lora(folder.parent / "base").train()
    before = state_of(wrapped)
    tokenizer = tiny_base().tokenizer
    head = write_head(tmp_path / "head", make_cache(tmp_path / "c", tiny_base(), pairs=8))
    with MAVInference(head, wrapped, tokenizer) as mav:
        with mav.steering(0.0) as model:
            torch.testing.assert_close(model(IDS).logits, logits(lora(folder.parent / "base")))
        mav.generate("Hi", 1.0, max_new_tokens=4)
    assert state_of(wrapped) == before


def test_what_acts_of_the_adapters_is_part_of_the_identity(folder: Path) -> None:
    wrapped = lora(folder.parent / "base")
    base = loaded_base(wrapped, tiny_base().tokenizer)
    assert base is not None
    whole = base.fingerprint().weights_digest
    with wrapped.disable_adapter():
        assert base.fingerprint().weights_digest != whole
    assert base.fingerprint().weights_digest == whole


def test_virtual_tokens_are_refused(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder.parent / "base")
    wrapped = peft.get_peft_model(
        model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(UsageError, match="PROMPT_TUNING, whose virtual tokens stand before"):
        loaded_base(wrapped, tiny_base().tokenizer)
    wrapped.save_pretrained(folder.parent / "prompt")
    with pytest.raises(BaseModelError, match="an adapter of virtual tokens"):
        load_base(folder.parent / "prompt", device="cpu")


def unfinished(folder: Path, *, weights: bool = True, base: str = "base") -> Path:
    """An adapter's folder as far as it is read before PEFT is needed."""
    save_base(tiny_base(), folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir()
    named = str(folder / base) if base else ""
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{named}"}}')
    if weights:
        (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return adapter


def test_without_peft_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    told = r"adapter: is an adapter, and loading one needs PEFT: pip install 'mav-align\[peft\]'$"
    with pytest.raises(UsageError, match=told):
        load_base(unfinished(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        ({"weights": False}, r"without adapter_model\.safetensors; save it with PEFT"),
        ({"base": ""}, "got base_model_name_or_path '', expected the adapter's base"),
        ({"base": "elsewhere"}, "the base of this adapter is not found: .*elsewhere"),
        ({"base": "adapter"}, "an adapter of .*"),
    ],
)
def test_what_is_wrong_with_an_adapter(tmp_path: Path, lacking: Any, told: str) -> None:
    with pytest.raises(BaseModelError, match=told):
        resolve_base(str(unfinished(tmp_path, **lacking)))


def test_merging_what_is_no_adapter_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_base(save_base(tiny_base(), tmp_path / "base"), device="cpu", merge_adapter=True)
    assert "`merge_adapter` changes nothing" in caplog.text
